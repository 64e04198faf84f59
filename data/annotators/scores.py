"""Rewards and costs from numeric columns, one constraint for each cost column."""

import math
from dataclasses import dataclass

from data.annotators.strength import check_units, rewards_of_order
from data.schema import BadRow, Response, Row


@dataclass(frozen=True)
class Score:
    """``scale * (value - threshold)`` of one score, negated with ``invert``.

    Args:
        column: Name of the score in ``Response.scores``.
        threshold: Value of the column at which the reward or cost is 0. For a cost, values beyond it are unsafe.
        scale: Units per unit of the column (nats for a reward), > 0.
        invert: Set it for a column whose larger values mean a smaller reward or cost, such as a safety score read as
            cost.

    Raises:
        ValueError: If ``scale`` is not > 0 or ``threshold`` is not finite.
    """

    column: str
    threshold: float = 0.0
    scale: float = 1.0
    invert: bool = False

    def __post_init__(self) -> None:
        check_units(self.scale, None)
        if not math.isfinite(self.threshold):
            raise ValueError(f"threshold must be finite, got {self.threshold}")

    def of(self, row: Row, response: Response) -> float:
        """The reward or cost of ``response``. Raises BadRow if it has no such score."""
        if self.column not in response.scores:
            raise BadRow(row.id, self.column, "is null or missing")
        value = self.scale * (response.scores[self.column] - self.threshold)
        return -value if self.invert else value


@dataclass(frozen=True)
class Scores:
    """Rewards and costs from columns that people or a scorer filled in.

    Args:
        costs_from: One constraint for each entry, named by its column.
        reward_from: The reward's column. None uses the preference alone, with ``preference_strength``.
        preference_strength: Used without a reward column: reward of the better response minus that of the other, in
            nats; None leaves rewards unknown.

    Raises:
        ValueError: If no cost is named, one is named twice, or ``preference_strength`` is not > 0.
    """

    costs_from: tuple[Score, ...]
    reward_from: Score | None = None
    preference_strength: float | None = 1.0

    def __post_init__(self) -> None:
        check_units(1.0, self.preference_strength)
        if not self.constraints or len(set(self.constraints)) < len(self.constraints):
            raise ValueError(f"costs_from must name at least one column, and none twice, got {list(self.constraints)}")

    @property
    def constraints(self) -> tuple[str, ...]:
        return tuple(cost.column for cost in self.costs_from)

    def rewards(self, row: Row) -> tuple[float, float]:
        if self.reward_from is None:
            return rewards_of_order(row, self.preference_strength)
        first, second = (self.reward_from.of(row, response) for response in row.responses)
        return first, second

    def costs(self, row: Row) -> tuple[tuple[float, ...], tuple[float, ...]]:
        first, second = (tuple(cost.of(row, response) for cost in self.costs_from) for response in row.responses)
        return first, second
