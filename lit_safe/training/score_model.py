"""Training of score models: rewards and costs of whole responses, from preference pairs and safety labels.

Letters: B pairs, N = 2B sequences, D hidden width, K outputs, C constraints.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from lit_safe.phases import phase
from lit_safe.protocols.data import PreferenceRunData
from lit_safe.protocols.scores import ScoringModel
from lit_safe.protocols.trainer import connected
from lit_safe.training.feature_cache import FeatureCache, store_at
from lit_safe.training.metrics import Measured, better
from lit_safe.training.optimizers import gentle_adamw
from lit_safe.training.schedules import Constant, Schedule
from lit_safe.training.score_losses import REWARD, CostLoss, RewardLoss
from lit_safe.training.stepping import StepModule
from lit_safe.types import PackedBatch, PackedSequences, Pair, Scored

NAMES = (
    "loss",
    "loss/reward",
    "loss/cost",
    "rewards/accuracies",
    "rewards/margins",
    "costs/accuracies",
    "costs/signs",
    "costs/safe",
    "costs/unsafe",
)


class ScoreBatch(NamedTuple):
    """A batch of pairs with the hidden states of its sequences, if they are known."""

    pairs: PackedBatch
    hidden_ND: Tensor | None = None


class ScoreModel(StepModule):
    """Trains a reward, costs, or both on one trunk. A cost > 0 is unsafe.

    There is one output for the reward and one for each constraint of the data, for example each harm category. After
    training, the callback ``lit_safe.report.score_report.ScoreReport`` writes the calibrated model with its card.

    Args:
        pair: The trunk and its heads (``models.score_network.ScoreNetwork``).
        reward: Loss of the reward, on pairs whose labelled rewards differ. Null trains no reward.
        cost: Loss of the costs, on the data's cost labels. Null trains no cost.
        optimizer: Optimizer of the trainable parameters. The default is AdamW with learning rate 1e-6 and no weight
            decay, for a whole trunk; heads alone need about 1e-3 (configs/score/).
        schedule: Factor on the learning rate by optimizer step. The default is constant.
        gradient_clip_norm: Bound on the gradient's 2-norm in an optimizer step. Null disables clipping.
        decay_norms: Also apply the optimizer's weight decay to norms and biases.
        feature_cache_dir: Folder that keeps a frozen trunk's hidden states for later runs. Null keeps them in memory.

    Raises:
        ValueError: If both losses are null, or ``feature_cache_dir`` is set for a trunk that trains.
    """

    data_protocol = PreferenceRunData
    pair: Any

    def __init__(
        self,
        pair: ScoringModel,
        reward: RewardLoss | None = None,
        cost: CostLoss | None = None,
        optimizer: OptimizerCallable = gentle_adamw,
        schedule: Schedule | None = None,
        gradient_clip_norm: float | None = 1.0,
        decay_norms: bool = False,
        feature_cache_dir: str | None = None,
    ) -> None:
        model: Any = pair
        super().__init__(model, optimizer, schedule or Constant(), gradient_clip_norm, NAMES, decay_norms)
        if reward is None and cost is None:
            raise ValueError("reward and cost are both null, so nothing would train: name a loss of one of them")
        if feature_cache_dir is not None and not pair.frozen:
            raise ValueError("feature_cache_dir keeps hidden states of a frozen trunk: set pair.adaptation to null")
        self.reward = reward
        self.cost = cost
        self.feature_cache_dir = feature_cache_dir
        self.cache: FeatureCache | None = None
        self._safer_first = False

    @property
    def constraints(self) -> tuple[str, ...]:
        """Names of the C cost outputs."""
        return tuple(name for name in self.pair.outputs if name != REWARD)

    def setup(self, stage: str) -> None:
        """Check that the data have the labels, and name the outputs.

        Raises:
            ValueError: If no training pair has a label that trains.
        """
        super().setup(stage)
        if stage == "fit":
            self.check_labels(connected(self.trainer).datamodule)

    def take_stop_tokens(self, data: Any) -> None:
        """Take the data's stop tokens, the names of their constraints and the meaning of their order."""
        super().take_stop_tokens(data)
        constraints = tuple(data.constraints) if self.cost is not None else ()
        if REWARD in constraints:
            raise ValueError(f"a constraint is named {REWARD!r}, as the reward is: give it another name")
        self.pair.name_outputs([REWARD] * (self.reward is not None) + list(constraints))
        self._safer_first = getattr(data, "order", None) == "safer"

    def on_train_start(self) -> None:
        """Compute the hidden states of a frozen trunk once, then start timing."""
        if self.pair.frozen and self.cache is None:
            cache = FeatureCache(store_at(self.feature_cache_dir, self.pair.trunk_digest()))
            cache.load()
            data = connected(self.trainer).datamodule
            keys = cache.fill(self, data.batches_of("train"), self.pair.features)
            if self.global_step == 0:
                mean_square_D = cache.rows(keys).double().square().mean(0)
                self.pair.set_scale(mean_square_D.sqrt().clamp(min=1e-6))
            self.cache = cache
        super().on_train_start()

    def complete(self, item: Any) -> Any:
        """Add known hidden states to an item. The data module calls this while ids are on the host."""
        if self.cache is None:
            return item
        if isinstance(item, list):
            return [self.complete(batch) for batch in item]
        return ScoreBatch(item, self.cache.of(item, self._on_device))

    def _on_device(self, sequences: PackedSequences) -> Tensor:
        with torch.no_grad():
            return self.pair.features(PackedSequences(*(part.to(self.device) for part in sequences[:4]))).cpu()

    def scores(self, batch: PackedBatch | ScoreBatch) -> tuple[PackedBatch, Tensor]:
        """The pairs and the scores [N, K] of their sequences."""
        pairs, hidden_ND = batch if isinstance(batch, ScoreBatch) else (batch, None)
        if hidden_ND is None:
            hidden_ND = self.pair.features(pairs.sequences)
        return pairs, self.pair.score_features(hidden_ND)

    def losses(self, pairs: PackedBatch, score_NK: Tensor) -> dict[str, Scored]:
        """Losses and weights [B] of each output by name."""
        found: dict[str, Scored] = {}
        cost_BC = Pair(*(side.reshape(len(side), -1) for side in pairs.label.cost))
        for k, name in enumerate(self.pair.outputs):
            score = Pair(score_NK[0::2, k], score_NK[1::2, k])
            if name == REWARD:
                assert self.reward is not None
                found[name] = self.reward(score, pairs.label.reward)
            else:
                assert self.cost is not None
                c = self.constraints.index(name)
                found[name] = self.cost(score, Pair(*(side[:, c] for side in cost_BC)), self._safer_first)
        return found

    def _measure(self, batch: PackedBatch | ScoreBatch) -> tuple[PackedBatch, Tensor, dict[str, Measured]]:
        """The pairs, the loss [B] of each, and the logged quantities."""
        pairs, score_NK = self.scores(batch)
        losses = self.losses(pairs, score_NK)
        present_B = pairs.present
        parts = [torch.where(one.weight > 0, one.loss, 0) for one in losses.values()]
        loss_B = torch.stack(parts).sum(0) * present_B
        used_B = torch.stack([one.weight > 0 for one in losses.values()]).any(0) & present_B
        with torch.no_grad():
            return (
                pairs,
                loss_B,
                {"loss": Measured(loss_B.detach(), used_B), **self._quantities(pairs, score_NK, losses)},
            )

    def _quantities(self, pairs: PackedBatch, score_NK: Tensor, losses: dict[str, Scored]) -> dict[str, Measured]:
        score_NK, present_B = score_NK.detach(), pairs.present
        nothing = Measured(score_NK.new_zeros(1), score_NK.new_zeros(1))
        found = {name: [nothing] for name in NAMES if name != "loss"}
        for k, (name, scored) in enumerate(losses.items()):
            margin_B = score_NK[0::2, k] - score_NK[1::2, k]
            kind = "reward" if name == REWARD else "cost"
            found[f"loss/{kind}"].append(Measured(scored.loss.detach(), (scored.weight > 0) & present_B))
            if name == REWARD:
                order_B = pairs.label.reward.margin.nan_to_num().sign()
                found["rewards/accuracies"].append(Measured(better(order_B * margin_B), (order_B != 0) & present_B))
                found["rewards/margins"].append(Measured(order_B * margin_B, (order_B != 0) & present_B))
                continue
            c = self.constraints.index(name)
            cost_2B = torch.stack([side.reshape(len(side), -1)[:, c] for side in pairs.label.cost])
            order_B = (cost_2B[0] - cost_2B[1]).nan_to_num().sign()
            found["costs/accuracies"].append(Measured(better(order_B * margin_B), (order_B != 0) & present_B))
            score_2B = torch.stack([score_NK[0::2, k], score_NK[1::2, k]])
            known_2B, unsafe_2B = ~cost_2B.isnan() & present_B, cost_2B > 0
            right_2B = better(torch.where(unsafe_2B, score_2B, -score_2B))
            found["costs/signs"].append(Measured(right_2B.flatten(), known_2B.flatten()))
            for side, where_2B in (("safe", known_2B & ~unsafe_2B), ("unsafe", known_2B & unsafe_2B)):
                found[f"costs/{side}"].append(Measured(score_2B.flatten(), where_2B.flatten()))
        return {name: _joined(parts) for name, parts in found.items()}

    def training_step(self, micro_batches: list[PackedBatch | ScoreBatch], batch_idx: int) -> None:
        """Run one optimizer step over all micro-batches."""
        shares = [partial(self.loss_share, batch) for batch in micro_batches]
        self.log_training(self.optimizer_step_over(shares), {})

    def loss_share(self, batch: PackedBatch | ScoreBatch) -> Tensor:
        """A micro-batch's part [] of the step's loss in nats: its sum of losses / number of pairs in the step."""
        pairs, loss_B, measured = self._measure(batch)
        with phase("metrics"):
            self.train_means.update(_pooled(measured))
            self.count(pairs.sequences, pairs.present)
        return loss_B.sum() / pairs.pairs_in_step

    def validation_step(self, batch: PackedBatch | ScoreBatch, batch_idx: int) -> None:
        """Add a batch to the split's means."""
        self.eval_means.update(_pooled(self._measure(batch)[2]))

    def test_step(self, batch: PackedBatch | ScoreBatch, batch_idx: int) -> None:
        """Do the same as in validation. Results are logged under ``test/``."""
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch: PackedBatch | ScoreBatch, batch_idx: int) -> dict[str, Tensor]:
        """Per pair [B]: ids, and each output's scores of both responses."""
        pairs, score_NK = self.scores(batch)
        found = {"pair_id": pairs.pair_id, "prompt_id": pairs.prompt_id, "present": pairs.present}
        for k, name in enumerate(self.pair.outputs):
            found |= {f"{name}/chosen": score_NK[0::2, k], f"{name}/rejected": score_NK[1::2, k]}
        return found

    def check_labels(self, data: Any) -> None:
        """Check that the train split has labels for every output.

        Raises:
            ValueError: If it has no two different rewards, or only safe or only unsafe responses for a constraint.
        """
        rows = [pair.row for pair in data.pairs("train")]
        ordered = any(
            row.chosen_reward < row.rejected_reward or row.chosen_reward > row.rejected_reward for row in rows
        )
        if self.reward is not None and not ordered:
            raise ValueError(
                "model.reward: no training pair has two different rewards; name sources that say which response is "
                "more helpful and an annotator that gives rewards (preference_strength or reward_from)"
            )
        for c, name in enumerate(data.constraints if self.cost is not None else ()):
            costs = [cost[c] for row in rows for cost in (row.chosen_cost, row.rejected_cost)]
            unsafe, safe = any(cost > 0 for cost in costs), any(cost <= 0 for cost in costs)
            if not (unsafe and safe):
                found = "only unsafe responses" if unsafe else "only safe responses" if safe else "no label"
                raise ValueError(
                    f"model.cost: the train split has {found} for the constraint {name!r}, so its cost has no border "
                    "at 0; name sources with both labels, or check the annotator's threshold"
                )


def _joined(parts: Sequence[Measured]) -> Measured:
    value, weight = (torch.cat([getattr(part, side).float() for part in parts]) for side in ("value", "weight"))
    return Measured(value, weight)


def _pooled(measured: dict[str, Measured]) -> dict[str, Measured]:
    """One entry [1] for each name, since quantities of pairs and of responses differ in length."""
    return {name: one.pooled() for name, one in measured.items()}
