"""Sample-weighted means of named quantities, exact over ranks, micro-batches and resumes; under TRL's names.

Letters: B pairs.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_safe.types import PackedBatch, Pair, Scored

STRATA = ("safe_safe", "safe_unsafe", "unsafe_unsafe")
"""Pairs by how many of their responses are unsafe; either order of ``safe_unsafe``."""


class Measured(NamedTuple):
    """A quantity ``value`` [B] and the pairs [B] (bool) that it is defined for."""

    value: Tensor
    where: Tensor


PAIR_NAMES = (
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    *(f"rewards/accuracies/{stratum}" for stratum in STRATA),
    "rewards/accuracies/safer",
    "logps/chosen",
    "logps/rejected",
    "logps/accuracies",
    "logps/accuracies_per_token",
    "logratios/chosen",
    "logratios/rejected",
    "lengths/chosen",
    "lengths/rejected",
    "pairs/dropped",
    *(f"pairs/{stratum}" for stratum in STRATA),
)


def better(margin_B: Tensor) -> Tensor:
    """[B] 1 where the margin is positive, 0 where negative, **one half for a tie** (every margin ties at step 0)."""
    return (margin_B.sign() + 1) / 2


def pair_quantities(
    batch: PackedBatch, policy: Pair, logratio: Pair, scored: Scored, beta: float
) -> dict[str, Measured]:
    """Everything logged of B pairs.

    ``loss`` is the mean over pairs of weight > 0 (SafeDPO's eq. 12 is a mean over the pairs that its T keeps).
    ``rewards/*`` are TRL's implicit rewards beta * logratio; ``logps/*`` sums of the policy's response log-probs in
    nats; ``logps/accuracies`` asks whether the policy itself finds the chosen response likelier (summed, and per
    token), which has an answer at step 0; ``rewards/accuracies/safer`` asks, of pairs with one unsafe response,
    whether the safe one has the higher implicit reward, whichever was chosen.
    """
    present_B = batch.present
    unsafe = batch.label.unsafe
    known_B = present_B & ~(_unknown(batch.label.cost.chosen) | _unknown(batch.label.cost.rejected))
    unsafe_count_B = unsafe.chosen.long() + unsafe.rejected.long()
    accuracy_B = better(logratio.margin)
    safer_B = torch.where(unsafe.chosen, 1 - accuracy_B, accuracy_B)
    length = Pair(*(side.clamp(min=1) for side in batch.response_length))
    per_token = Pair(policy.chosen / length.chosen, policy.rejected / length.rejected)
    stratum = {name: known_B & (unsafe_count_B == count) for count, name in enumerate(STRATA)}
    values = {
        "loss": Measured(scored.loss * scored.weight, present_B & (scored.weight > 0)),
        "rewards/chosen": Measured(beta * logratio.chosen, present_B),
        "rewards/rejected": Measured(beta * logratio.rejected, present_B),
        "rewards/margins": Measured(beta * logratio.margin, present_B),
        "rewards/accuracies": Measured(accuracy_B, present_B),
        **{f"rewards/accuracies/{name}": Measured(accuracy_B, where_B) for name, where_B in stratum.items()},
        "rewards/accuracies/safer": Measured(safer_B, stratum["safe_unsafe"]),
        "logps/chosen": Measured(policy.chosen, present_B),
        "logps/rejected": Measured(policy.rejected, present_B),
        "logps/accuracies": Measured(better(policy.margin), present_B),
        "logps/accuracies_per_token": Measured(better(per_token.margin), present_B),
        "logratios/chosen": Measured(logratio.chosen, present_B),
        "logratios/rejected": Measured(logratio.rejected, present_B),
        "lengths/chosen": Measured(batch.response_length.chosen, present_B),
        "lengths/rejected": Measured(batch.response_length.rejected, present_B),
        "pairs/dropped": Measured(scored.weight == 0, present_B),
        **{f"pairs/{name}": Measured(where_B, known_B) for name, where_B in stratum.items()},
    }
    return {name: Measured(value.detach(), where) for name, (value, where) in values.items()}


def _unknown(cost: Tensor) -> Tensor:
    return cost.isnan().any(-1) if cost.ndim == 2 else cost.isnan()


class Means(Metric):
    """Means of named quantities over everything seen since the last reset.

    Its sums are persistent (they lie in every checkpoint), so a run resumed inside a logging window logs what the
    uninterrupted one does. A name nothing was seen of is left out of the result.

    Args:
        names: The quantities, in the order of their columns.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        for state in ("total", "count"):
            zeros = torch.zeros(len(self.names), dtype=torch.float64)
            self.add_state(state, zeros, dist_reduce_fx="sum", persistent=True)

    def update(self, measured: Mapping[str, Measured]) -> None:
        """Add values [B] where their mask [B] holds; every name must be given."""
        for index, name in enumerate(self.names):
            value, where = measured[name]
            value = value.to(self.total)
            self.total[index] += torch.where(where, value, 0).sum()
            self.count[index] += where.sum()

    def compute(self) -> dict[str, Tensor]:
        """Means by name, fp32 []."""
        mean = self.total / self.count
        return {name: mean[i].float() for i, name in enumerate(self.names) if self.count[i] > 0}
