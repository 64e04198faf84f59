"""Preference training: from a batch to log-ratios, an objective, a loss.

Letters: B pairs, N = 2B sequences.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from lit_safe.anchors import Anchor
from lit_safe.callbacks.end_of_run import nothing_to_train
from lit_safe.label_draws import LabelDraws
from lit_safe.metrics import ANCHOR_LOSS, OBJECTIVE_LOSS, PAIR_NAMES, Means, Measured, pair_quantities
from lit_safe.optimizers import gentle_adamw
from lit_safe.precision import compute_dtype
from lit_safe.quiet import quiet
from lit_safe.reference_cache import ReferenceCache
from lit_safe.run_data import PreferenceRunData, missing_members
from lit_safe.schedules import Constant, Schedule
from lit_safe.stepping import StepModule
from lit_safe.types import (
    Objective,
    PackedBatch,
    Pair,
    PairModel,
    Scored,
    Selective,
)

LABEL_DRAWS = "label_draws"  # in a checkpoint


class PreferenceAlignment(StepModule):
    """Aligns a policy to preferences under a swappable objective, with a multiplier that ``DualAscent`` may move.

    Args:
        pair: The policy and its reference.
        objective: The pairwise loss.
        optimizer: Built on the parameters that train; AdamW at 1e-6 without weight decay by default.
        schedule: Factor on the learning rate by optimizer step; constant by default.
        multiplier: Start value(s) of the dual variable, one for each constraint, in nats per cost unit, >= 0.
        gradient_clip_norm: Bound on the gradient's 2-norm in an optimizer step; null leaves it alone.
        anchor: A term that keeps the policy where the pairs say nothing (configs/anchor/); null adds none.
        precompute_reference: Score the reference on every training response once, before the first step (TRL's
            ``precompute_ref_log_probs``), instead of at every step: less time where training sees a response more than
            once, over epochs or in several pairs.
        reference_cache_dir: Where to keep what ``precompute_reference`` scored, for later runs that have the same
            reference, to the bit, and the same type of products: a study of objectives scores it once. Their last
            bits are those of the run that scored them first, in batches that may have been others.
        decay_norms: Let the optimizer's weight decay act on norms and biases too.

    Raises:
        ValueError: If a start multiplier is negative, or ``reference_cache_dir`` is named and nothing is precomputed.
    """

    multiplier: Tensor
    dual_epoch: Tensor
    data_protocol = PreferenceRunData

    def __init__(
        self,
        pair: PairModel,
        objective: Objective,
        optimizer: OptimizerCallable = gentle_adamw,
        schedule: Schedule | None = None,
        multiplier: float | list[float] = 0.0,
        gradient_clip_norm: float | None = 1.0,
        anchor: Anchor | None = None,
        precompute_reference: bool = False,
        reference_cache_dir: str | None = None,
        decay_norms: bool = False,
    ) -> None:
        super().__init__(pair, optimizer, schedule or Constant(), gradient_clip_norm, PAIR_NAMES, decay_norms)
        missing = missing_members(objective, Objective)
        if missing:
            raise TypeError(
                f"objective: {type(objective).__name__} has no {', '.join(missing)} (lit_safe.types.Objective)"
            )
        self.objective = objective
        self.anchor = anchor or Anchor()
        self.anchor_means = None if anchor is None else Means((ANCHOR_LOSS, *anchor.names))
        self._anchor_loss: list[Tensor] = []  # this rank's shares of the step's anchor terms
        self.label_draws = LabelDraws()
        self.reference_cache = ReferenceCache() if precompute_reference else None
        if reference_cache_dir is not None and not precompute_reference:
            raise ValueError("reference_cache_dir keeps what precompute_reference scores: set that to true")
        self._reference_cache_dir = reference_cache_dir
        start = torch.tensor(multiplier, dtype=torch.float32)
        if not bool((start.isfinite() & (start >= 0)).all()):
            raise ValueError(f"multiplier must be >= 0 and finite, got {multiplier}")
        self.register_buffer("multiplier", start)  # written by DualAscent alone
        self.register_buffer("dual_epoch", torch.tensor(-1))  # the last epoch that took its dual step

    def forward(self, batch: PackedBatch, own_reference: bool = False) -> tuple[Pair, Pair, Scored]:
        """Policy log-probs, log-ratios (a Pair of [B] nats each) and what the objective says of them.

        ``own_reference`` spares the reference's pass where the policy is known to be the reference still.
        """
        if own_reference:
            policy = reference = self._pair(self.pair.policy_logp(batch.sequences))
        elif batch.reference_logp is not None:
            policy, reference = self._pair(self.pair.policy_logp(batch.sequences)), batch.reference_logp
        else:
            policy, reference = map(self._pair, self.pair.both_logp(batch.sequences))
        logratio = Pair(policy.chosen - reference.chosen, policy.rejected - reference.rejected)
        return policy, logratio, self.objective(logratio, batch.label, self.multiplier)

    @staticmethod
    def _pair(logp_N: Tensor) -> Pair:
        return Pair(logp_N[0::2], logp_N[1::2])

    def setup(self, stage: str) -> None:
        """Check the data for what the objective reads, and leave out the training pairs that it never trains on.

        Raises:
            ValueError: A label that the objective reads is missing, multipliers and constraints differ in number, or
                no training pair is left.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        data.require(self.objective.needs)
        if self.objective.reads_multiplier:
            self._check_multiplier(data.constraints)
        if stage == "fit" and isinstance(self.objective, Selective):
            data.select(self.objective.keeps)  # before steps are counted
        super().setup(stage)

    def _check_multiplier(self, constraints: Sequence[str]) -> None:
        shape = [] if len(constraints) == 1 else [len(constraints)]
        if list(self.multiplier.shape) != shape:
            raise ValueError(
                f"model.multiplier has shape {list(self.multiplier.shape)}, and the data have {len(constraints)} "
                f"constraints ({', '.join(constraints)}): give {'a list of numbers' if shape else 'one number'}"
                f"{f', {shape[0]} of them' if shape else ''}"
            )

    def on_train_start(self) -> None:
        """Score the reference and let the anchor draw what it needs, then start the clock."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not nothing_to_train(self.trainer):
            if self.reference_cache is not None:
                self._fill(self.reference_cache, data)
            self.anchor.prepare(self, data)
            self.label_draws.see(self.multiplier)
        super().on_train_start()

    def on_train_epoch_start(self) -> None:
        """Draw sampled labels anew if the multiplier has moved."""
        self.label_draws.see(self.multiplier)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep which draws of sampled labels the run has come to."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[LABEL_DRAWS] = self.label_draws.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with these draws."""
        super().on_load_checkpoint(checkpoint)
        if LABEL_DRAWS in checkpoint:
            self.label_draws.load_state_dict(checkpoint[LABEL_DRAWS])

    def _fill(self, cache: ReferenceCache, data: Any) -> None:
        """Reference log-probs of the training pairs: from the disk where they lie there, and to it."""
        path = None
        if self._reference_cache_dir is not None:
            with quiet(self, seed=0):
                computed = f"{self.pair.reference_digest()}, products in {compute_dtype(self.device)}"
            name = hashlib.sha256(computed.encode()).hexdigest()[:32]
            path = Path(self._reference_cache_dir).expanduser() / f"reference-{name}.npz"
            cache.load(path)
        cache.fill(self, data.batches_of("train"))
        if path is not None:
            cache.save(path)

    def complete(self, item: Any) -> Any:
        """A training item with its reference log-probs, called by the data module while its ids are on the host.

        Raises:
            ValueError: If one was not scored before training; names a pair.
        """
        if self.reference_cache is None or not self.trainer.training:
            return item
        batches = [self.reference_cache.attach(batch) for batch in item]
        for batch in batches:
            if batch.reference_logp is None:
                raise ValueError(
                    f"precompute_reference scored {len(self.reference_cache)} responses before training, and not all "
                    f"of the micro-batch with pair {int(batch.pair_id[0])}: batches_of('train') leaves it out"
                )
        return batches

    def training_step(self, micro_batches: list[PackedBatch], batch_idx: int) -> None:
        """One optimizer step over all micro-batches, and what the anchor adds to it."""
        if self.reference_cache is not None and micro_batches[0].reference_logp is None:
            micro_batches = self.complete(micro_batches)  # data of another kind, which did not call it
        shares = [partial(self.loss_share, batch) for batch in micro_batches]
        terms = [partial(self._anchored, term) for term in self.anchor.on_step(self, self.global_step)]
        norm = self.optimizer_step_over([*shares, *terms])
        if self.anchor_means is not None:
            self.anchor_means.update({ANCHOR_LOSS: self._anchor_mean(), **self._measured_by_anchor()})
        self.log_training(norm, self._multipliers())

    def _multipliers(self) -> dict[str, Tensor]:
        """Under the names that ``DualAscent`` logs them by."""
        if not self.objective.reads_multiplier:
            return {}
        if self.multiplier.ndim == 0:
            return {"multiplier": self.multiplier.clone()}
        names = self.trainer.datamodule.constraints  # type: ignore[attr-defined]
        return {f"multiplier_{name}": one for name, one in zip(names, self.multiplier.clone(), strict=True)}

    def loss_share(self, batch: PackedBatch) -> Tensor:
        """A micro-batch's share [] of its optimizer step's loss in nats: its weighted sum / pairs in the step."""
        batch = self.label_draws.drawn(batch, self.seed)
        policy, logratio, scored = self(batch)
        self.train_means.update(pair_quantities(batch, policy, logratio, scored, self.objective.beta))
        self.count(batch.sequences, batch.present)
        # a NaN label of a dropped or filler pair must not reach the sum: 0 * NaN is NaN ...
        weight_B = scored.weight * batch.present
        kept_B = weight_B > 0
        loss_B = torch.where(kept_B, scored.loss, 0)
        for side_B in logratio:  # ... nor the gradient, where it would meet the 0 that comes back from the sum
            if side_B.requires_grad:
                side_B.register_hook(lambda grad_B: torch.where(kept_B, grad_B, 0))
        # with no pair left the sum is 0 and still has a (zero) gradient
        share = (loss_B * weight_B).sum() / batch.pairs_in_step + 0.0 * policy.margin.sum()
        term_B = self.anchor.on_pairs(self, batch._replace(present=kept_B), policy)
        if term_B is None:
            return share
        return share + self._anchored(lambda: (torch.where(kept_B, term_B, 0) * weight_B).sum() / batch.pairs_in_step)

    def _anchored(self, term: Callable[[], Tensor]) -> Tensor:
        """A share of the anchor's, noted for ``loss/anchor``."""
        share = term()
        self._anchor_loss.append(share.detach())
        return share

    def _anchor_mean(self) -> Measured:
        """The step's anchor terms, a sum over ranks that counts as one."""
        ranks = self.trainer.world_size
        share = torch.stack(self._anchor_loss).sum() if self._anchor_loss else torch.zeros((), device=self.device)
        self._anchor_loss = []
        return Measured(share[None] * ranks, torch.full_like(share[None], 1 / ranks))

    def _measured_by_anchor(self) -> dict[str, Measured]:
        pooled = {name: measured.pooled() for name, measured in self.anchor.logged().items()}
        return {name: Measured(*(part.to(self.device) for part in measured)) for name, measured in pooled.items()}

    def window_means(self) -> dict[str, float]:
        """The window's means; with an anchor, ``loss`` is the sum that is optimised, its parts stand beside it."""
        means = super().window_means()
        if self.anchor_means is None:
            return means
        anchor: dict[str, float] = self.anchor_means.compute()
        self.anchor_means.reset()
        objective = means.get("loss", 0.0)  # no pair was kept
        total = objective + anchor.get(ANCHOR_LOSS, 0.0)
        return {**means, **anchor, "loss": total, OBJECTIVE_LOSS: objective}

    def validation_step(self, batch: PackedBatch, batch_idx: int) -> None:
        """Add a batch to the means of the split."""
        batch = self.label_draws.drawn(batch, self.seed)
        policy, logratio, scored = self(batch)
        self.eval_means.update(pair_quantities(batch, policy, logratio, scored, self.objective.beta))

    def test_step(self, batch: PackedBatch, batch_idx: int) -> None:
        """As validation, logged under ``test/``."""
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch: PackedBatch, batch_idx: int) -> dict[str, Any]:
        """What is known of each pair [B]: ids, log-probs, log-ratios (nats), loss and weight."""
        policy, logratio, scored = self(self.label_draws.drawn(batch, self.seed))
        return {
            "pair_id": batch.pair_id,
            "prompt_id": batch.prompt_id,
            "present": batch.present,
            "logps/chosen": policy.chosen,
            "logps/rejected": policy.rejected,
            "logratios/chosen": logratio.chosen,
            "logratios/rejected": logratio.rejected,
            "loss": scored.loss,
            "weight": scored.weight,
        }
