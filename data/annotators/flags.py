"""Costs from safe/unsafe flags."""

import math
from dataclasses import dataclass

from data.annotators.strength import check_units, rewards_of_order
from data.schema import Row


@dataclass(frozen=True)
class Flags:
    """``cost = scale * (v - threshold)`` with v = +1 for a response flagged unsafe and -1 for one flagged safe.

    The cost is +-scale at threshold 0. Its sign equals the flag at every allowed threshold.

    Args:
        scale: Cost units per step of v, > 0.
        threshold: In (-1, 1): the value of v at which the cost is 0.
        preference_strength: Reward of the better response minus that of the other, in nats; None leaves rewards
            unknown.
        constraint: Name of the one constraint.

    Raises:
        ValueError: If ``scale`` or ``preference_strength`` is not > 0 or ``threshold`` lies outside (-1, 1).
    """

    scale: float = 1.0
    threshold: float = 0.0
    preference_strength: float | None = 1.0
    constraint: str = "harm"

    def __post_init__(self) -> None:
        check_units(self.scale, self.preference_strength)
        if not -1 < self.threshold < 1:
            raise ValueError(f"threshold must lie between -1 (safe) and 1 (unsafe), got {self.threshold}")

    @property
    def constraints(self) -> tuple[str, ...]:
        return (self.constraint,)

    def rewards(self, row: Row) -> tuple[float, float]:
        return rewards_of_order(row, self.preference_strength)

    def costs(self, row: Row) -> tuple[tuple[float, ...], tuple[float, ...]]:
        first, second = (self._cost(response.safe) for response in row.responses)
        return (first,), (second,)

    def _cost(self, safe: bool | None) -> float:
        return math.nan if safe is None else self.scale * ((-1.0 if safe else 1.0) - self.threshold)
