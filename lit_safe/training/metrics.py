"""Sample-weighted means of logged quantities, exact over ranks, micro-batches and resumes. Names follow TRL.

Letters: B pairs.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice

import torch
from torch import Tensor
from torch.nn import Module
from torchmetrics import Metric

from lit_safe.execution.ranks import merge
from lit_safe.types import Measured, PackedBatch, Pair, Scored

SUMS = ("total", "count")  # the state of ``Means``

STRATA = ("safe_safe", "safe_unsafe", "unsafe_unsafe")
"""Groups of pairs by the number of unsafe responses. ``safe_unsafe`` has both orders."""


OBJECTIVE_LOSS, ANCHOR_LOSS = "loss/objective", "loss/anchor"
"""Names of the two parts of a training loss with an anchor."""

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
    """[B] 1 for a positive margin, 0 for a negative one, **0.5 for a tie** (at step 0 all margins are ties).

    NaN for an unknown margin.
    """
    return torch.where(margin_B.isnan(), torch.nan, (margin_B.sign() + 1) / 2)


@torch.no_grad()
def pair_quantities(
    batch: PackedBatch, policy: Pair, logratio: Pair, scored: Scored, beta: float, has_reference: bool = True
) -> dict[str, Measured]:
    """All logged quantities of B pairs, without gradient and without waiting for the device.

    - ``loss`` is the mean over pairs with weight > 0 (SafeDPO's eq. 12 is a mean over the pairs that its T keeps).
    - ``rewards/*`` are implicit rewards beta * logratio, as in TRL.
    - ``logps/*`` are sums of the policy's response log-probs in nats.
    - ``logps/accuracies`` is the share of pairs whose chosen response is likelier under the policy itself (by the sum,
      and per token). Unlike reward accuracies, it is informative at step 0.
    - ``rewards/accuracies/safer`` is the share, among pairs with one unsafe response, in which the safe response has
      the higher implicit reward, whether it was chosen or not.
    - ``rewards/*`` and ``logratios/*`` have weight 0 without ``has_reference``: there is no implicit reward then, and
      ``logps/*`` say how the policy ranks the responses.
    """
    present_B = batch.present
    compared_B = present_B & has_reference
    unsafe = batch.label.unsafe
    known_B = present_B & ~(_unknown(batch.label.cost.chosen) | _unknown(batch.label.cost.rejected))
    unsafe_count_B = unsafe.chosen.long() + unsafe.rejected.long()
    length_2B = torch.stack(batch.response_length)
    policy_2B = torch.stack(policy)
    logratio_2B = torch.stack(logratio)
    per_token_2B = policy_2B / length_2B.clamp(min=1)
    side_32B = torch.stack([logratio_2B, policy_2B, per_token_2B])
    margin_3B = side_32B[:, 0] - side_32B[:, 1]
    accuracy_B, likelier_B, likelier_per_token_B = better(margin_3B).unbind()
    reward_chosen_B, reward_rejected_B, reward_margin_B = (
        beta * torch.stack([logratio.chosen, logratio.rejected, margin_3B[0]])
    ).unbind()
    safer_B = torch.where(unsafe.chosen, 1 - accuracy_B, accuracy_B)
    stratum = {name: known_B & (unsafe_count_B == count) for count, name in enumerate(STRATA)}
    kept_B = scored.weight > 0
    return {
        "loss": Measured(scored.loss * scored.weight, present_B & kept_B),
        "rewards/chosen": Measured(reward_chosen_B, compared_B),
        "rewards/rejected": Measured(reward_rejected_B, compared_B),
        "rewards/margins": Measured(reward_margin_B, compared_B),
        "rewards/accuracies": Measured(accuracy_B, compared_B),
        **{
            f"rewards/accuracies/{name}": Measured(accuracy_B, where_B & has_reference)
            for name, where_B in stratum.items()
        },
        "rewards/accuracies/safer": Measured(safer_B, stratum["safe_unsafe"] & has_reference),
        "logps/chosen": Measured(policy.chosen, present_B),
        "logps/rejected": Measured(policy.rejected, present_B),
        "logps/accuracies": Measured(likelier_B, present_B),
        "logps/accuracies_per_token": Measured(likelier_per_token_B, present_B),
        "logratios/chosen": Measured(logratio.chosen, compared_B),
        "logratios/rejected": Measured(logratio.rejected, compared_B),
        "lengths/chosen": Measured(batch.response_length.chosen, present_B),
        "lengths/rejected": Measured(batch.response_length.rejected, present_B),
        "pairs/dropped": Measured(~kept_B, present_B),
        **{f"pairs/{name}": Measured(where_B, known_B) for name, where_B in stratum.items()},
    }


def _unknown(cost: Tensor) -> Tensor:
    return cost.isnan().any(-1) if cost.ndim == 2 else cost.isnan()


class Means(Metric):
    """Weighted means of named quantities since the last reset.

    The sums are saved in every checkpoint, so a run that resumes within a logging window logs the same values as an
    uninterrupted run. Each rank has its own sums; ``over_ranks`` returns the totals for a checkpoint. Names without any
    value are left out of the result. Sums are float64, or float32 on a device without float64.

    Args:
        names: The quantities, in column order.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        for state in SUMS:
            zeros = torch.zeros(len(self.names), dtype=torch.float64)
            self.add_state(state, zeros, dist_reduce_fx="sum", persistent=True)

    @property
    def update_called(self) -> bool:
        """Always True, because sums may come from a checkpoint and torchmetrics would warn about a missing update."""
        return True

    def update(self, measured: Mapping[str, Measured]) -> None:
        """Add weighted values, B entries for each name.

        Raises:
            KeyError: If a name is missing or unknown.
        """
        if measured.keys() != set(self.names):
            raise KeyError(f"measured {sorted(measured)}, but the means are of {sorted(self.names)}")
        # one stack for all names, so a micro-batch needs few device operations
        value_KB = torch.stack([measured[name].value for name in self.names]).to(self.total)
        weight_KB = torch.stack([measured[name].weight for name in self.names]).to(self.total)
        self.total += torch.where(weight_KB > 0, value_KB * weight_KB, 0).sum(1)
        self.count += weight_KB.sum(1)

    def compute(self) -> dict[str, float]:
        """Means by name, rounded to fp32. Waits for the device once."""
        return self.named(self._numbers().tolist())

    def numbers(self) -> Tensor:
        """[2K] the means over all ranks and whether a value was seen, fp32, on the device. All ranks must call this."""
        with self.sync_context():
            return self._numbers()

    def _numbers(self) -> Tensor:
        return torch.cat([self.total / self.count, self.count > 0]).float()

    def named(self, numbers: Sequence[float]) -> dict[str, float]:
        """``numbers``, read from the device, by name. Names without a value are left out."""
        half = len(self.names)
        known = zip(self.names, numbers[:half], numbers[half:], strict=True)
        return {name: mean for name, mean, seen in known if seen}

    def over_ranks(self) -> dict[str, Tensor]:
        """The sums over all ranks, on every rank. All ranks must call this."""
        return {state: merge(getattr(self, state).clone(), self.device) for state in SUMS}

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Module:
        """Move the sums like other tensors of a module. Use float32 if the device has no float64 (Apple's GPUs)."""
        try:
            fn(self.total)
        except TypeError:
            self._defaults.update({state: self._defaults[state].float() for state in SUMS})
            for state in SUMS:
                setattr(self, state, getattr(self, state).float())
        return super()._apply(fn, exclude_state)


class Scalars:
    """Scalars by name, some of them on a device."""

    def __init__(self, values: Mapping[str, Tensor | float]) -> None:
        self.values = values

    def numbers(self) -> Tensor:
        """The tensors among them, fp32."""
        tensors = [value.detach().reshape(1).float() for value in self.values.values() if isinstance(value, Tensor)]
        return torch.cat(tensors) if tensors else torch.zeros(0)

    def named(self, numbers: Sequence[float]) -> dict[str, float]:
        """All of them, with ``numbers`` in the places of the tensors."""
        left = iter(numbers)
        return {n: next(left) if isinstance(value, Tensor) else float(value) for n, value in self.values.items()}


def together(*parts: Means | Scalars) -> list[dict[str, float]]:
    """The numbers of all parts by name. Waits for the device once, for all of them."""
    tensors = [part.numbers() for part in parts]
    filled = [tensor for tensor in tensors if len(tensor)]
    numbers = iter(torch.cat(filled).tolist() if filled else [])
    return [part.named(list(islice(numbers, len(tensor)))) for part, tensor in zip(parts, tensors, strict=True)]


def on_host(values: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Scalars as Python numbers. Waits for the device once, for all tensors together."""
    (found,) = together(Scalars(values))
    return found
