"""A cost function whose safe responses all cost 0."""

from collections.abc import Sequence
from typing import Any

import torch

from lit_safe.rollouts.scoring import as_costs, declared_range, place
from lit_safe.scorer_card import check_scorer
from lit_safe.types import CostFunction


class Rectified:
    """max(cost, 0) of another cost function. A limit on its mean is not met by making safe responses safer.

    Its mean is 0 only if no response is unsafe. A limit of 0 is then out of reach for most policies, and the multiplier
    only rises: state a small positive limit.

    Args:
        cost: Scores text; > 0 is unsafe.
    """

    def __init__(self, cost: CostFunction) -> None:
        self.cost = cost

    @property
    def folder(self) -> Any:
        """The folder of the scorer's card.

        Raises:
            AttributeError: If the other cost function has none.
        """
        return self.cost.folder  # type: ignore[attr-defined]

    @property
    def range(self) -> tuple[float, float] | None:
        """From 0 to the largest cost, if the other cost function declares a range that reaches above 0."""
        declared = declared_range(self.cost)
        return None if declared is None or declared[1] <= 0 else (max(declared[0], 0.0), declared[1])

    def check_usable(self, *, reads: str | None = None) -> None:
        """Refuse the other cost function if its card says that it must not be used."""
        check_scorer(self.cost, reads=reads)

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Any:
        """Costs [n] or [n, C], >= 0. NaN stays NaN."""
        return as_costs(self.cost, self.cost(prompts, responses), len(responses)).clamp(min=0)

    def use_device(self, device: torch.device) -> None:
        """Run the other cost function on ``device``, if it can move."""
        place(self.cost, device)
