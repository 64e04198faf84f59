"""Supervised fine-tuning: the baseline of both papers, the stage that trains their reference, and losses of tokens.

Letters: N sequences, T positions, R scored ones.
"""

from collections.abc import Iterator
from functools import partial
from itertools import chain, islice

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from lit_safe.errors.message import SettingError
from lit_safe.phases import phase
from lit_safe.protocols.pair import FreesReference, HasTrunk, PairModel, ScoresTokens
from lit_safe.protocols.trainer import connected
from lit_safe.training.chunk_scores import ChunkScores
from lit_safe.training.optimizers import gentle_adamw
from lit_safe.training.reference_plan import validation_batches
from lit_safe.training.schedules import Constant, Schedule
from lit_safe.training.stepping import StepModule
from lit_safe.training.trunk_cache import TrunkCache
from lit_safe.types import IGNORE, Measured, ScoredTokens, SequenceBatch, TokenObjective

TOKEN_NAMES = ("loss/nll", "loss/kl", "weights/token")
"""What a token objective logs besides: means over scored tokens; the KL over those at which it is computed."""


class SupervisedFineTuning(StepModule):
    """Trains a policy on responses: maximises their log-likelihood, averaged over the scored tokens of a step.

    Args:
        pair: The policy. Its reference is used only by a token objective with a KL.
        optimizer: Optimizer of the trainable parameters. The default is AdamW with learning rate 1e-6 and no weight
            decay.
        schedule: Factor on the learning rate by optimizer step. The default is constant.
        gradient_clip_norm: Bound on the gradient's 2-norm in an optimizer step. Null disables clipping.
        decay_norms: Also apply the optimizer's weight decay to norms and biases.
        token_objective: Loss of a single token, in place of its NLL: ``configs/token_objective/``.
        token_weights: Weighs each token by a guardrail's score of the response so far, for a ``token_objective``.

    Raises:
        ValueError: If there are token weights without a token objective.
    """

    def __init__(
        self,
        pair: PairModel,
        optimizer: OptimizerCallable = gentle_adamw,
        schedule: Schedule | None = None,
        gradient_clip_norm: float | None = 1.0,
        decay_norms: bool = False,
        token_objective: TokenObjective | None = None,
        token_weights: ChunkScores | None = None,
    ) -> None:
        if token_weights is not None and token_objective is None:
            raise ValueError("token_weights has no effect without token_objective: name one (configs/token_objective/)")
        names = ("loss", "lengths/response", *(() if token_objective is None else TOKEN_NAMES))
        super().__init__(pair, optimizer, schedule or Constant(), gradient_clip_norm, names, decay_norms)
        self.token_objective, self.token_weights = token_objective, token_weights
        self.trunk_cache: TrunkCache | None = None

    def setup(self, stage: str) -> None:
        """Check that the pair gives what the token objective reads.

        Raises:
            SettingError: If it does not.
        """
        if self.token_objective is not None and not isinstance(self.pair, ScoresTokens):
            raise SettingError(
                f"model.token_objective needs a pair with token_scores; {type(self.pair).__name__} has none"
            )
        super().setup(stage)

    def on_train_start(self) -> None:
        """Score responses if tokens are weighed, store states of frozen layers, and free a reference without use."""
        self._weigh()
        self._store_trunk()
        if not self.reads_reference and isinstance(self.pair, FreesReference):
            self.pair.free_reference()
        super().on_train_start()

    def on_validation_start(self) -> None:
        """Score the responses if tokens are weighed and this is the first pass."""
        self._weigh()

    def on_test_start(self) -> None:
        """Score the responses if tokens are weighed and this is the first pass."""
        self._weigh()

    def _weigh(self) -> None:
        if self.token_weights is not None:
            self.token_weights.prepare(self)

    def _store_trunk(self) -> None:
        """Store states of frozen layers for training and validation, if the pair asks. Token objectives read none."""
        storage = self.pair.trunk_storage() if isinstance(self.pair, HasTrunk) else None
        if storage is None or self.token_objective is not None:
            return
        trainer, data = self.trainer, connected(self.trainer).datamodule
        total, each = int(trainer.estimated_stepping_batches), int(trainer.num_training_batches)

        def batches() -> Iterator[SequenceBatch]:
            loader = data.train_dataloader()  # of the first epoch; other epochs have the same rows, unless limited
            steps = islice(loader, total if total <= each else len(loader))
            return chain(chain.from_iterable(steps), validation_batches(trainer, data))

        self.trunk_cache = TrunkCache(storage)
        self.trunk_cache.fill(self, batches)  # type: ignore[arg-type]  # the storage shows that the pair has a trunk

    @property
    def reads_reference(self) -> bool:
        """Whether steps may ask for the reference."""
        return self.token_objective is not None

    def completed(self, batch: SequenceBatch) -> SequenceBatch:
        """A batch with the rows of the models' input, stored states, and token weights if tokens are weighed."""
        if self.trunk_cache is not None:
            batch = batch._replace(sequences=self.trunk_cache.attach(batch.sequences))
        batch = super().completed(batch)
        if self.trainer.predicting:
            return batch
        if self.token_weights is not None:
            batch = self.token_weights.attach(batch)
        return batch if self.token_objective is None else batch._replace(tokens=_asked(self.token_objective, batch))

    def _losses(self, batch: SequenceBatch) -> tuple[Tensor, dict[str, Measured]]:
        """[N] sums of the losses of a sequence's scored tokens, 0 for a filler row, and what is logged."""
        logged: dict[str, Measured] = {}
        if self.token_objective is None:
            if batch.token_weight is not None:
                raise ValueError("the data weigh tokens: name a model.token_objective (configs/token_objective/)")
            loss_N = -self.pair.policy_logp(batch.sequences)
        else:
            loss_N, logged = self._token_losses(self.token_objective, batch)
        length_N = _sums(scored(batch).to(loss_N), batch.sequences.cu_seqlens)
        per_token_N = loss_N.detach() / length_N.clamp(min=1)
        return loss_N * batch.present, {
            "loss": Measured(per_token_N, length_N * batch.present),  # a mean over tokens, like the loss of a step
            "lengths/response": Measured(length_N, batch.present),
            **logged,
        }

    def _token_losses(self, objective: TokenObjective, batch: SequenceBatch) -> tuple[Tensor, dict[str, Measured]]:
        assert isinstance(self.pair, ScoresTokens)
        weight_R, factor_R, at_K = batch.tokens or _asked(objective, batch)
        logp_R, kl_R = self.pair.token_scores(batch.sequences, at_K)
        loss_R = objective.loss(-logp_R, weight_R.to(logp_R))
        if factor_R is not None:
            loss_R = loss_R + factor_R.to(kl_R) * kl_R
        before_T1 = torch.nn.functional.pad(scored(batch).cumsum(0), (1, 0))
        bounds_N1 = before_T1[batch.sequences.cu_seqlens.long()]
        asked_R = torch.zeros_like(weight_R) if at_K is None else torch.zeros_like(weight_R).index_fill(0, at_K, 1.0)
        present_N = batch.present
        values = (
            (-logp_R, torch.ones_like(weight_R)),
            (kl_R * asked_R, asked_R),
            (weight_R, torch.ones_like(weight_R)),
        )
        logged = {}
        for name, (value_R, one_R) in zip(TOKEN_NAMES, values, strict=True):
            total_N, number_N = (_sums(part_R.detach(), bounds_N1) for part_R in (value_R, one_R))
            logged[name] = Measured(total_N / number_N.clamp(min=1), number_N * present_N)
        return _sums(loss_R, bounds_N1), logged

    def training_step(self, micro_batches: list[SequenceBatch], batch_idx: int) -> None:
        """Run one optimizer step over all micro-batches."""
        shares = [partial(self._loss_share, batch) for batch in micro_batches]
        self.log_training(self.optimizer_step_over(shares), {})

    def _loss_share(self, batch: SequenceBatch) -> Tensor:
        loss_N, measured = self._losses(batch)
        with phase("metrics"):
            self.train_means.update(measured)
            self.count(batch.sequences, batch.present)
        return loss_N.sum() / batch.tokens_in_step

    def validation_step(self, batch: SequenceBatch, batch_idx: int) -> None:
        """Add a batch to the split's means."""
        self.eval_means.update(self._losses(batch)[1])

    def test_step(self, batch: SequenceBatch, batch_idx: int) -> None:
        """Do the same as in validation. Results are logged under ``test/``."""
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch: SequenceBatch, batch_idx: int) -> dict[str, Tensor]:
        """Per row [N]: ids, the response's log-prob in nats, and its length in tokens."""
        length_N = _sums(scored(batch).float(), batch.sequences.cu_seqlens)
        return {
            "row_id": batch.row_id,
            "prompt_id": batch.prompt_id,
            "present": batch.present,
            "logp": self.pair.policy_logp(batch.sequences) * batch.present,
            "length": length_N.long(),
        }


def _asked(objective: TokenObjective, batch: SequenceBatch) -> ScoredTokens:
    """What the objective asks of each scored token. It reads from the batch's device, so it is for the host."""
    scored_T = scored(batch)
    if batch.token_weight is None:
        weight_R = torch.ones(int(scored_T.sum()), device=scored_T.device)
    else:
        weight_R = batch.token_weight[scored_T]
    factor_R = objective.kl_factor(weight_R)
    return ScoredTokens(weight_R, factor_R, None if factor_R is None else factor_R.nonzero()[:, 0])


def scored(batch: SequenceBatch) -> Tensor:
    """[T] bool: whether a position predicts a token that is scored."""
    return batch.sequences.target != IGNORE


def _sums(value: Tensor, bounds_N1: Tensor) -> Tensor:
    """[N] sums within the bounds of each sequence. The order of the additions is that of ``ops.sequence_logratio``."""
    return torch.segment_reduce(value, "sum", offsets=bounds_N1.to(value.device, torch.int64), initial=0.0)
