"""Preference training: from a batch to log-ratios, an objective, a loss.

Letters: B pairs, N = 2B sequences.
"""

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from lit_safe.anchors import Anchor
from lit_safe.metrics import PAIR_NAMES, pair_quantities
from lit_safe.precision import compute_dtype
from lit_safe.quiet import quiet
from lit_safe.reference_cache import ReferenceCache
from lit_safe.schedules import Constant, Schedule
from lit_safe.stepping import StepModule
from lit_safe.types import Objective, PackedBatch, Pair, PairModel, PreferenceRunData, Scored, Selective


class PreferenceAlignment(StepModule):
    """Aligns a policy to preferences under a swappable objective, with a multiplier that ``DualAscent`` may move.

    Args:
        pair: The policy and its reference.
        objective: The pairwise loss.
        optimizer: Built on the parameters that train.
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
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        multiplier: float | list[float] = 0.0,
        gradient_clip_norm: float | None = 1.0,
        anchor: Anchor | None = None,
        precompute_reference: bool = False,
        reference_cache_dir: str | None = None,
    ) -> None:
        super().__init__(pair, optimizer, schedule or Constant(), gradient_clip_norm, PAIR_NAMES)
        self.objective = objective
        self.anchor = anchor or Anchor()
        self.reference_cache = ReferenceCache() if precompute_reference else None
        if reference_cache_dir is not None and not precompute_reference:
            raise ValueError("reference_cache_dir keeps what precompute_reference scores: set that to true")
        self._reference_cache_dir = reference_cache_dir
        start = torch.tensor(multiplier, dtype=torch.float32)
        if not bool((start >= 0).all()):
            raise ValueError(f"multiplier must be >= 0, got {multiplier}")
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
        """Take the pairs that the objective never trains on out of the training data, before steps are counted."""
        super().setup(stage)
        if stage == "fit" and isinstance(self.objective, Selective):
            self.trainer.datamodule.select(self.objective.keeps)  # type: ignore[attr-defined]

    def on_fit_start(self) -> None:
        """Refuse data that lacks a label the objective cannot do without."""
        self.trainer.datamodule.require(self.objective.needs)  # type: ignore[attr-defined]

    def on_train_start(self) -> None:
        """Score the reference and let the anchor draw what it needs, then start the clock."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.reference_cache is not None:
            self._fill(self.reference_cache, data)
        self.anchor.prepare(self, data)
        super().on_train_start()

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

    def training_step(self, micro_batches: list[PackedBatch], batch_idx: int) -> None:
        """One optimizer step over all micro-batches, and what the anchor adds to it."""
        if self.reference_cache is not None:
            micro_batches = [self.reference_cache.attach(batch) for batch in micro_batches]
        shares = [partial(self.loss_share, batch) for batch in micro_batches]
        norm = self.optimizer_step_over([*shares, *self.anchor.on_step(self, self.global_step)])
        self.log_training(norm, {**{f"multiplier{i}": m for i, m in _named(self.multiplier)}, **self.anchor.logged()})

    def loss_share(self, batch: PackedBatch) -> Tensor:
        """A micro-batch's share [] of its optimizer step's loss in nats: its weighted sum / pairs in the step."""
        policy, logratio, scored = self(batch)
        self.train_means.update(pair_quantities(batch, policy, logratio, scored, self.objective.beta))
        self.count(batch.sequences, int(batch.present.sum()))
        # a NaN label of a dropped or filler pair must not reach the sum: 0 * NaN is NaN ...
        term_B = self.anchor.on_pairs(self, batch, policy)
        weight_B = scored.weight * batch.present
        kept_B = weight_B > 0
        loss_B = scored.loss if term_B is None else scored.loss + term_B
        loss_B = torch.where(kept_B, loss_B, torch.zeros_like(loss_B))
        for side_B in logratio:  # ... nor the gradient, where it would meet the 0 that comes back from the sum
            if side_B.requires_grad:
                side_B.register_hook(lambda grad_B: torch.where(kept_B, grad_B, torch.zeros_like(grad_B)))
        # with no pair left the sum is 0 and still has a (zero) gradient
        return (loss_B * weight_B).sum() / batch.pairs_in_step + 0.0 * policy.margin.sum()

    def validation_step(self, batch: PackedBatch, batch_idx: int) -> None:
        """Add a batch to the means of the split."""
        policy, logratio, scored = self(batch)
        self.eval_means.update(pair_quantities(batch, policy, logratio, scored, self.objective.beta))

    def test_step(self, batch: PackedBatch, batch_idx: int) -> None:
        """As validation, logged under ``test/``."""
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch: PackedBatch, batch_idx: int) -> dict[str, Any]:
        """What is known of each pair [B]: ids, log-probs, log-ratios (nats), loss and weight."""
        policy, logratio, scored = self(batch)
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


def _named(multiplier: Tensor) -> list[tuple[str, Tensor]]:
    return [("", multiplier)] if multiplier.ndim == 0 else [(f"_{i}", m) for i, m in enumerate(multiplier)]
