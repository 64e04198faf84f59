"""Any pairwise objective on both orders of each pair, weighted by how likely each order is.

A data set holds one drawn order for each pair. Where rewards are known, so is the probability of that draw, and the
expectation of the loss over it has the same optimum without the draw's noise. The construction is ours: it is to any
objective what ``labels="soft"`` is to C-DPO and SafeDPO.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from lit_safe.protocols.objective import extra_needs, is_reference_free, score
from lit_safe.types import NO_EXTRA, Annotation, Extra, Need, Objective, Pair, Scored, Selective


@dataclass(frozen=True)
class BothOrders:
    """The expected loss of an objective over the order of a pair, P(chosen preferred) = sigma(r_chosen - r_rejected).

    Args:
        objective: A pairwise loss that reads the order.
        flip_rate: Probability in [0, 0.5] that a drawn order would be reversed, as label noise does.

    Raises:
        ValueError: If ``flip_rate`` is outside its range.

    Example:
        >>> import torch
        >>> from lit_safe.objectives import DPO
        >>> from lit_safe.types import Annotation, Pair
        >>> tie = Pair(torch.tensor([1.0]), torch.tensor([1.0]))
        >>> logratio = Pair(torch.tensor([2.0]), torch.tensor([-3.0]))
        >>> BothOrders(DPO(beta=0.1))(logratio, Annotation(tie, tie), torch.tensor(0.0)).loss  # (0.4741 + 0.9741) / 2
        tensor([0.7241])
    """

    objective: Objective
    flip_rate: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.flip_rate <= 0.5:
            raise ValueError(f"flip_rate must lie in [0, 0.5], got {self.flip_rate}")

    @property
    def beta(self) -> float:
        """That of the objective."""
        return self.objective.beta

    @property
    def needs(self) -> tuple[Need, ...]:
        """Rewards, and what the objective needs."""
        return ("reward", *(need for need in self.objective.needs if need != "reward"))

    @property
    def reads_multiplier(self) -> bool:
        """Whether the objective does."""
        return self.objective.reads_multiplier

    @property
    def reference_free(self) -> bool:
        """Whether the objective is."""
        return is_reference_free(self.objective)

    def keeps(self, label: Annotation) -> Tensor:
        """[B] bool: False where the objective drops the pair in either order."""
        if not isinstance(self.objective, Selective):
            return torch.ones(len(label.reward.chosen), dtype=torch.bool, device=label.reward.chosen.device)
        return self.objective.keeps(label) | self.objective.keeps(_turned(label))

    def __call__(self, logratio: Pair, label: Annotation, multiplier: Tensor, extra: Extra = NO_EXTRA) -> Scored:
        likely_B = label.reward.margin.sigmoid().to(logratio.margin)  # Bradley & Terry 1952
        likely_B = (1 - self.flip_rate) * likely_B + self.flip_rate * (1 - likely_B)
        one = self._scored(logratio, label, multiplier, extra)
        other = self._scored(_exchanged(logratio), _turned(label), multiplier, _exchanged_extra(extra))
        first_B, second_B = likely_B * one.weight, (1 - likely_B) * other.weight
        weight_B = first_B + second_B
        total_B = torch.where(first_B > 0, first_B * one.loss, 0) + torch.where(second_B > 0, second_B * other.loss, 0)
        return Scored(total_B / weight_B.clamp(min=torch.finfo(weight_B.dtype).tiny), weight_B)

    def _scored(self, logratio: Pair, label: Annotation, multiplier: Tensor, extra: Extra) -> Scored:
        names = extra_needs(self.objective)
        known = Extra(**{name: extra[name] for name in names}) if names else NO_EXTRA  # type: ignore[literal-required, typeddict-item]  # names are keys of Extra
        return score(self.objective, logratio, logratio, label, multiplier, known)


def _exchanged(value: Pair) -> Pair:
    return Pair(value.rejected, value.chosen)


def _turned(label: Annotation) -> Annotation:
    """The labels of the pair in the other order. A sampled label stays the same event."""
    draw = None if label.draw is None else 1 - label.draw
    return Annotation(_exchanged(label.reward), _exchanged(label.cost), draw)


def _exchanged_extra(extra: Extra) -> Extra:
    sides: dict[str, Any] = {key: _exchanged(v) if isinstance(v, Pair) else v for key, v in extra.items()}
    return cast(Extra, sides)
