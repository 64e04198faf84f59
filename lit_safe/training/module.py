"""Preference training: computes log-ratios of a batch, the objective and the loss.

Letters: B pairs, N = 2B sequences.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from lightning import Trainer
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from lit_safe.anchors import Anchor
from lit_safe.errors.message import SettingError
from lit_safe.phases import phase
from lit_safe.protocols.data import PreferenceRunData, missing_members
from lit_safe.protocols.objective import extra_needs, is_reference_free, label_needs, score
from lit_safe.protocols.pair import LaysOut, MayLackReference, PairModel
from lit_safe.protocols.run import StartsMultiplier
from lit_safe.protocols.trainer import connected
from lit_safe.runs.end_of_run import nothing_to_train
from lit_safe.training.label_draws import LabelDraws
from lit_safe.training.metrics import ANCHOR_LOSS, OBJECTIVE_LOSS, PAIR_NAMES, Means, pair_quantities
from lit_safe.training.mismatch import Mismatch
from lit_safe.training.multiplier import check_shape
from lit_safe.training.optimizers import gentle_adamw
from lit_safe.training.predictions import pair_columns
from lit_safe.training.reference_cache import ReferenceCache
from lit_safe.training.reference_plan import Precompute, pairs_to_score
from lit_safe.training.schedules import Constant, Schedule
from lit_safe.training.stepping import StepModule
from lit_safe.training.stores import fill_stores, find_scores
from lit_safe.training.trunk_cache import TrunkCache
from lit_safe.types import Extra, Measured, Objective, PackedBatch, Pair, Scored, Selective

LABEL_DRAWS = "label_draws"  # key in a checkpoint


class PreferenceAlignment(StepModule):
    """Trains a policy on preference pairs with a pairwise objective, and holds the multiplier of ``DualAscent``.

    Args:
        pair: The policy and its reference.
        objective: The pairwise loss.
        optimizer: Optimizer of the trainable parameters. The default is AdamW with learning rate 1e-6 and no weight
            decay.
        schedule: Factor on the learning rate by optimizer step. The default is constant.
        multiplier: Start value(s) of the dual variable, one per constraint, in nats per cost unit, >= 0. With ``auto``,
            the callback ``Reachability`` estimates them before the first step (configs/trainer/reach.yaml).
        gradient_clip_norm: Bound on the gradient's 2-norm in an optimizer step. Null disables clipping.
        anchor: Extra loss term against drift from the reference (configs/anchor/). Null adds none.
        precompute_reference: Score the responses that training will use with the reference once, before the first step,
            instead of at every step (TRL's ``precompute_ref_log_probs``). ``auto`` does so if the run uses its pairs
            more than once, or if ``reference_cache_dir`` is set. The scores are kept in the run folder.
        reference_cache_dir: Folder that stores the scores for all runs with a bitwise equal reference and the same
            dtype of matrix products, instead of the run folder. Stored scores can differ in the last bits from scores
            computed anew, because they may have been computed in other batches.
        decay_norms: Also apply the optimizer's weight decay to norms and biases.

    Raises:
        TypeError: If ``objective`` lacks a member of ``lit_safe.types.Objective``.
        ValueError: If a start multiplier is negative or not finite, or ``reference_cache_dir`` is set although
            ``precompute_reference`` is false.
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
        multiplier: float | list[float] | Literal["auto"] = 0.0,
        gradient_clip_norm: float | None = 1.0,
        anchor: Anchor | None = None,
        precompute_reference: Precompute = "auto",
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
        self.reference_free = is_reference_free(objective)
        self.mismatch = Mismatch() if "mismatched_logratio" in extra_needs(objective) else None
        self.anchor = anchor or Anchor()
        self.anchor_means = None if anchor is None else Means((ANCHOR_LOSS, *anchor.names))
        self._anchor_loss: list[Tensor] = []  # this rank's parts of the step's anchor loss
        self.label_draws = LabelDraws()
        self.trunk_cache: TrunkCache | None = None
        if reference_cache_dir is not None and precompute_reference is False:
            raise ValueError("reference_cache_dir stores what is precomputed: set precompute_reference to true or auto")
        self.reference_cache: ReferenceCache | None = None
        self.precompute_reference, self.reference_cache_dir = precompute_reference, reference_cache_dir
        self.multiplier_auto = multiplier == "auto"
        start = torch.tensor(0.0 if isinstance(multiplier, str) else multiplier, dtype=torch.float32)
        if not bool((start.isfinite() & (start >= 0)).all()):
            raise ValueError(f"multiplier must be >= 0 and finite, got {multiplier}")
        self.register_buffer("multiplier", start)  # only DualAscent writes it
        self.register_buffer("dual_epoch", torch.tensor(-1))  # the last epoch whose dual step is done

    def forward(self, batch: PackedBatch, own_reference: bool = False) -> tuple[Pair, Pair, Scored]:
        """Policy log-probs and log-ratios (each a Pair of [B], in nats), and the objective's losses and weights.

        Log-ratios are NaN if the objective is reference-free, because no reference is scored then.
        ``own_reference`` skips the reference's forward pass. Set it only if the policy is still equal to the reference.
        """
        policy, reference = self._logps(batch, own_reference)
        logratio = _ratio(policy, reference)
        return policy, logratio, self.score(batch, policy, logratio)

    def _logps(self, batch: PackedBatch, own_reference: bool = False) -> tuple[Pair, Pair]:
        """Log-probs of policy and reference, each a Pair of [B] in nats."""
        if own_reference or self.reference_free:
            policy = self._pair(self.pair.policy_logp(batch.sequences))
            return policy, Pair(
                *(torch.full_like(side, torch.nan) for side in policy)
            ) if self.reference_free else policy
        if batch.reference_logp is not None:
            return self._pair(self.pair.policy_logp(batch.sequences)), batch.reference_logp
        policy, reference = map(self._pair, self.pair.both_logp(batch.sequences))
        return policy, reference

    def score(self, batch: PackedBatch, policy: Pair, logratio: Pair) -> Scored:
        """The objective's losses and weights for these log-probs and log-ratios, each a Pair of [B] in nats."""
        extra = Extra(policy_logp=policy, length=batch.response_length)
        if self.mismatch is not None:
            extra["mismatched_logratio"] = self.mismatch.of(self.pair, batch)
        return score(self.objective, policy, logratio, batch.label, self.multiplier, extra)

    def step_quantities(self, micro_batches: Sequence[PackedBatch]) -> AbstractContextManager[None]:
        """Within this context, ``loss_share`` uses what the objective asks for of all these micro-batches together."""
        return nullcontext() if self.mismatch is None else self.mismatch.of_step(self.pair, micro_batches)

    def configure_model(self) -> None:
        """Load the policy, and the reference unless neither the objective nor the anchor reads it."""
        if self.reference_free and not self.anchor.reads_reference and isinstance(self.pair, MayLackReference):
            self.pair.without_reference()
        super().configure_model()

    @staticmethod
    def _pair(logp_N: Tensor) -> Pair:
        return Pair(logp_N[0::2], logp_N[1::2])

    def setup(self, stage: str) -> None:
        """Check that the data have the labels that the objective reads. Drop training pairs that it never uses.

        Raises:
            ValueError: If a label that the objective reads is missing, the numbers of multipliers and constraints
                differ, no training pair is left, or no callback estimates a multiplier of ``auto``.
        """
        data = connected(self.trainer).datamodule
        data.require(label_needs(self.objective))
        if self.multiplier_auto:
            self.size_multiplier(data.constraints)
            if stage == "fit" and not any(isinstance(c, StartsMultiplier) for c in connected(self.trainer).callbacks):
                raise SettingError(
                    "model.multiplier auto needs the callback that estimates it: add -c configs/trainer/reach.yaml, or "
                    "give a number"
                )
        if self.objective.reads_multiplier:
            check_shape(self.multiplier, data.constraints)
        if stage == "fit" and isinstance(self.objective, Selective):
            data.select(self.objective.keeps)  # before steps are counted
        super().setup(stage)

    def size_multiplier(self, constraints: Sequence[str]) -> None:
        """Give a multiplier of ``auto`` one entry per constraint. Callbacks and checkpoints need its shape early."""
        shape = [] if len(constraints) == 1 else [len(constraints)]
        if self.multiplier_auto and list(self.multiplier.shape) != shape:
            self.multiplier = self.multiplier.new_zeros(shape)

    def on_train_start(self) -> None:
        """Store the states of frozen layers, score the reference, prepare the anchor, then start timing."""
        data = connected(self.trainer).datamodule
        if not nothing_to_train(self.trainer):
            fill_stores(self, data)
            self.label_draws.see(self.multiplier)
        super().on_train_start()

    def scores_ahead(self, trainer: Trainer, data: Any) -> Iterable[PackedBatch] | None:
        """Batches of the pairs that the reference scores before the first step of a run; None if it does not."""
        return pairs_to_score(trainer, data, self.precompute_reference, self.reference_cache_dir)

    def on_validation_epoch_start(self) -> None:
        """Use the reference's stored scores of an earlier run, if they exist and this is not a fit."""
        find_scores(self)
        super().on_validation_epoch_start()

    def on_test_epoch_start(self) -> None:
        """Do the same as in validation."""
        find_scores(self)
        super().on_test_epoch_start()

    def on_train_epoch_start(self) -> None:
        """Draw sampled labels again if the multiplier has changed."""
        self.label_draws.see(self.multiplier)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the state of the sampled labels' random draws."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[LABEL_DRAWS] = self.label_draws.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the state of the sampled labels' random draws."""
        super().on_load_checkpoint(checkpoint)
        if LABEL_DRAWS in checkpoint:
            self.label_draws.load_state_dict(checkpoint[LABEL_DRAWS])

    def completed(self, batch: PackedBatch) -> PackedBatch:
        """A batch with the rows of the models' input and, if they are stored, reference scores and trunk states.

        Of a batch that trains, the anchor chooses its pairs.

        Raises:
            ValueError: If a response that trains was not scored before training. The message names a pair of the batch.
        """
        batch = super().completed(self._with_chosen(self.with_trunk(batch)))
        if self.reference_cache is None or batch.reference_logp is not None:
            return batch
        batch = self.reference_cache.attach(batch)
        if batch.reference_logp is None and self.trainer.training:
            raise ValueError(
                f"precompute_reference scored {len(self.reference_cache)} responses before training, and not all "
                f"of the micro-batch with pair {int(batch.pair_id[0])}: batches_of('train') and batches_of_steps "
                "must yield every pair that trains"
            )
        return batch

    def _with_chosen(self, batch: PackedBatch) -> PackedBatch:
        chosen = self.anchor.choose(self, batch) if self.trainer.training else None
        if chosen is None or not len(chosen.place):
            return batch._replace(anchored=chosen)
        laid = self.pair.laid_out(chosen.sequences) if isinstance(self.pair, LaysOut) else chosen.sequences
        return batch._replace(anchored=chosen._replace(sequences=laid))

    def with_trunk(self, batch: PackedBatch) -> PackedBatch:
        """The batch with the states of frozen layers, if they are stored."""
        return batch if self.trunk_cache is None else batch._replace(sequences=self.trunk_cache.attach(batch.sequences))

    def training_step(self, micro_batches: list[PackedBatch], batch_idx: int) -> None:
        """Run one optimizer step over all micro-batches, with the anchor's terms."""
        if self.reference_cache is not None and micro_batches[0].reference_logp is None:
            micro_batches = self.complete(micro_batches)  # the data module did not call it
        shares = [partial(self.loss_share, batch) for batch in micro_batches]
        terms = [partial(self._anchored, term) for term in self.anchor.on_step(self, self.global_step)]
        with self.step_quantities(micro_batches):
            norm = self.optimizer_step_over([*shares, *terms])
        if self.anchor_means is not None:
            self.anchor_means.update({ANCHOR_LOSS: self._anchor_mean(), **self._measured_by_anchor()})
        self.log_training(norm, self._multipliers())

    def _multipliers(self) -> dict[str, Tensor]:
        """The multipliers, under the names that ``DualAscent`` logs."""
        if not self.objective.reads_multiplier:
            return {}
        if self.multiplier.ndim == 0:
            return {"multiplier": self.multiplier.clone()}
        names = connected(self.trainer).datamodule.constraints
        return {f"multiplier_{name}": one for name, one in zip(names, self.multiplier.clone(), strict=True)}

    def loss_share(self, batch: PackedBatch) -> Tensor:
        """A micro-batch's part [] of the step's loss in nats: its weighted sum / number of pairs in the step."""
        batch = self.label_draws.drawn(batch, self.seed)
        policy, logratio, scored = self(batch)
        with phase("metrics"):
            self.train_means.update(self._quantities(batch, policy, logratio, scored))
            self.count(batch.sequences, batch.present)
        # keep NaN labels of dropped and filler pairs out of the sum (0 * NaN is NaN) ...
        weight_B = scored.weight * batch.present
        kept_B = weight_B > 0
        loss_B = torch.where(kept_B, scored.loss, 0)
        for side_B in policy:  # ... and out of the gradient, for the same reason
            if side_B.requires_grad:
                side_B.register_hook(lambda grad_B: torch.where(kept_B, grad_B, 0))
        # the second term gives the sum a (zero) gradient if no pair is left
        share = (loss_B * weight_B).sum() / batch.pairs_in_step + 0.0 * policy.margin.sum()
        term_B = self.anchor.on_pairs(self, batch._replace(present=kept_B), policy)
        if term_B is None:
            return share
        return share + self._anchored(lambda: (torch.where(kept_B, term_B, 0) * weight_B).sum() / batch.pairs_in_step)

    def _quantities(self, batch: PackedBatch, policy: Pair, logratio: Pair, scored: Scored) -> dict[str, Measured]:
        return pair_quantities(batch, policy, logratio, scored, self.objective.beta, not self.reference_free)

    def _anchored(self, term: Callable[[], Tensor]) -> Tensor:
        """Compute a part of the anchor's loss and record it for ``loss/anchor``."""
        share = term()
        self._anchor_loss.append(share.detach())
        return share

    def _anchor_mean(self) -> Measured:
        """The step's anchor loss, summed over ranks, with total weight 1."""
        ranks = self.trainer.world_size
        share = torch.stack(self._anchor_loss).sum() if self._anchor_loss else torch.zeros((), device=self.device)
        self._anchor_loss = []
        return Measured(share[None] * ranks, torch.full_like(share[None], 1 / ranks))

    def _measured_by_anchor(self) -> dict[str, Measured]:
        pooled = {name: measured.pooled() for name, measured in self.anchor.logged().items()}
        return {name: Measured(*(part.to(self.device) for part in measured)) for name, measured in pooled.items()}

    def window_parts(self) -> list[Means]:
        """The sums over pairs, and those of the anchor."""
        return [*super().window_parts(), *([] if self.anchor_means is None else [self.anchor_means])]

    def window_means(self, found: Sequence[dict[str, float]]) -> dict[str, float]:
        """The window's means. With an anchor, ``loss`` is objective + anchor, and both parts are logged too."""
        means, *others = found
        if not others:
            return means
        (anchor,) = others
        objective = means.get("loss", 0.0)  # 0 if no pair was kept
        total = objective + anchor.get(ANCHOR_LOSS, 0.0)
        return {**means, **anchor, "loss": total, OBJECTIVE_LOSS: objective}

    def validation_step(self, batch: PackedBatch, batch_idx: int) -> None:
        """Add a batch to the split's means."""
        batch = self.label_draws.drawn(batch, self.seed)
        policy, logratio, scored = self(batch)
        self.eval_means.update(self._quantities(batch, policy, logratio, scored))

    def test_step(self, batch: PackedBatch, batch_idx: int) -> None:
        """Do the same as in validation. Results are logged under ``test/``."""
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch: PackedBatch, batch_idx: int) -> dict[str, Tensor]:
        """The columns of ``lit_safe.training.predictions``, each [B]."""
        batch = self.label_draws.drawn(batch, self.seed)
        policy, reference = self._logps(batch)
        scored = self.score(batch, policy, _ratio(policy, reference))
        constraints = connected(self.trainer).datamodule.constraints
        return pair_columns(batch, policy, reference, scored, self.objective.beta, constraints)


def _ratio(policy: Pair, reference: Pair) -> Pair:
    return Pair(policy.chosen - reference.chosen, policy.rejected - reference.rejected)
