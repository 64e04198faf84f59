"""The projected subgradient step of C-DPO.

Letters: C constraints.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from lit_safe.constraint.controllers import Controller
from lit_safe.constraint.controllers.settings import Setting, check_shapes, clipped, listed, setting
from lit_safe.training.schedules import Constant, Schedule
from lit_safe.types import CostEstimate


class ProjectedSubgradient(Controller):
    """multiplier ← clip(multiplier + lr · (estimated cost − limit), 0, maximum). The default of ``dual``.

    Args:
        lr: Step size(s), nats per squared cost unit. 0 never moves the multiplier. docs/constraints.md says how to
            choose it.
        schedule: Factor on ``lr`` by the number of the step, constant by default.
        maximum: Upper end(s) of the multiplier, nats per cost unit.

    Raises:
        ValueError: If ``lr`` is negative or not finite, or ``maximum`` is not positive.
    """

    def __init__(self, lr: Setting = 0.1, schedule: Schedule | None = None, maximum: Setting = 10.0) -> None:
        self.lr = setting("lr", lr)
        self.schedule = schedule or Constant()
        self._maximum = setting("maximum", maximum, positive=True)
        self._used = torch.zeros_like(self.lr)

    @property
    def maximum(self) -> Tensor:
        """Upper end, [] or [C]."""
        return self._maximum

    @property
    def moves(self) -> bool:
        """Whether any step size is positive."""
        return bool((self.lr > 0).any())

    @property
    def needs_end(self) -> bool:
        """With a schedule."""
        return self.schedule != Constant()

    def start(self, multiplier: Tensor, beta: float) -> Tensor:
        """The module's start value; see the protocol."""
        check_shapes(multiplier, lr=self.lr, maximum=self._maximum)
        return multiplier

    def step(self, multiplier: Tensor, estimate: CostEstimate, limit: Tensor, number: int, total: int | None) -> Tensor:
        """See the class and the protocol."""
        self._used = self.lr if total is None else self.lr * self.schedule(number, total)
        # Liu et al. 2024, arXiv:2403.02475, eq. 14: the dual's gradient is limit - E[cost], and the dual is minimised
        moved = multiplier.double() + self._used * (estimate.mean.double() - limit.double())
        return clipped(moved, self._maximum, multiplier)

    def sentence(self) -> str:
        """The step in words."""
        if not self.moves:
            return "dual.lr is 0"
        return f"moves by dual.lr {listed(self.lr)} x (cost - limit), between 0 and {listed(self._maximum)}"

    def curves(self) -> Mapping[str, Tensor]:
        """The step size."""
        return {"lr": self._used}
