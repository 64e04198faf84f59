"""Costs from graded harm (severity)."""

import math
from dataclasses import dataclass

from data.annotators.strength import check_units, rewards_of_order
from data.schema import Row


@dataclass(frozen=True)
class Severity:
    """``cost = scale * (severity - threshold)``. A response exactly at the threshold is safe.

    Args:
        threshold: In the dataset's units of severity. With 0.5, PKU-SafeRLHF's level 1 (minor) is unsafe; 0.5 is also
            the middle of PyRIT's scale from 0 to 1.
        scale: Cost units per unit of severity, > 0.
        preference_strength: Reward of the better response minus that of the other, in nats; None leaves rewards
            unknown.
        constraint: Name of the one constraint.

    Raises:
        ValueError: If ``scale`` or ``preference_strength`` is not > 0 or ``threshold`` is not finite.
    """

    threshold: float = 0.5
    scale: float = 1.0
    preference_strength: float | None = 1.0
    constraint: str = "harm"

    def __post_init__(self) -> None:
        check_units(self.scale, self.preference_strength)
        if not math.isfinite(self.threshold):
            raise ValueError(f"threshold must be finite, got {self.threshold}")

    @property
    def constraints(self) -> tuple[str, ...]:
        return (self.constraint,)

    def rewards(self, row: Row) -> tuple[float, float]:
        return rewards_of_order(row, self.preference_strength)

    def costs(self, row: Row) -> tuple[tuple[float, ...], tuple[float, ...]]:
        first, second = (self._cost(response.severity) for response in row.responses)
        return (first,), (second,)

    def _cost(self, severity: float | None) -> float:
        return math.nan if severity is None else self.scale * (severity - self.threshold)
