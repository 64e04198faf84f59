"""Supervised fine-tuning: the baseline of both papers, and the stage that trains their reference.

Letters: N sequences.
"""

from functools import partial

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from lit_safe.protocols.pair import PairModel
from lit_safe.training.optimizers import gentle_adamw
from lit_safe.training.schedules import Constant, Schedule
from lit_safe.training.stepping import StepModule
from lit_safe.types import Measured, SequenceBatch


class SupervisedFineTuning(StepModule):
    """Trains a policy on responses: maximises their log-likelihood, averaged over the scored tokens of a step.

    Args:
        pair: The policy. Its reference is not used.
        optimizer: Optimizer of the trainable parameters. The default is AdamW with learning rate 1e-6 and no weight
            decay.
        schedule: Factor on the learning rate by optimizer step. The default is constant.
        gradient_clip_norm: Bound on the gradient's 2-norm in an optimizer step. Null disables clipping.
        decay_norms: Also apply the optimizer's weight decay to norms and biases.
    """

    def __init__(
        self,
        pair: PairModel,
        optimizer: OptimizerCallable = gentle_adamw,
        schedule: Schedule | None = None,
        gradient_clip_norm: float | None = 1.0,
        decay_norms: bool = False,
    ) -> None:
        names = ("loss", "lengths/response")
        super().__init__(pair, optimizer, schedule or Constant(), gradient_clip_norm, names, decay_norms)

    def _nll(self, batch: SequenceBatch) -> tuple[Tensor, dict[str, Measured]]:
        nll_N = -self.pair.policy_logp(batch.sequences)
        scored_T = (batch.sequences.target >= 0).to(nll_N)
        bounds_N1 = batch.sequences.cu_seqlens.long()
        cumulative_T1 = torch.cat([scored_T.new_zeros(1), scored_T.cumsum(0)])
        length_N = cumulative_T1[bounds_N1[1:]] - cumulative_T1[bounds_N1[:-1]]
        per_token_N = nll_N.detach() / length_N.clamp(min=1)
        return nll_N * batch.present, {
            "loss": Measured(per_token_N, length_N * batch.present),  # a mean over tokens, like the loss of a step
            "lengths/response": Measured(length_N, batch.present),
        }

    def training_step(self, micro_batches: list[SequenceBatch], batch_idx: int) -> None:
        """Run one optimizer step over all micro-batches."""
        shares = [partial(self._loss_share, batch) for batch in micro_batches]
        self.log_training(self.optimizer_step_over(shares), {})

    def _loss_share(self, batch: SequenceBatch) -> Tensor:
        nll_N, measured = self._nll(batch)
        self.train_means.update(measured)
        self.count(batch.sequences, batch.present)
        return nll_N.sum() / batch.tokens_in_step

    def validation_step(self, batch: SequenceBatch, batch_idx: int) -> None:
        """Add a batch to the split's means."""
        self.eval_means.update(self._nll(batch)[1])

    def test_step(self, batch: SequenceBatch, batch_idx: int) -> None:
        """Do the same as in validation. Results are logged under ``test/``."""
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch: SequenceBatch, batch_idx: int) -> dict[str, Tensor]:
        """Per row [N]: ids, the response's log-prob in nats, and its length in tokens."""
        nll_N, measured = self._nll(batch)
        return {
            "row_id": batch.row_id,
            "prompt_id": batch.prompt_id,
            "present": batch.present,
            "logp": -nll_N,
            "length": measured["lengths/response"].value.long(),
        }
