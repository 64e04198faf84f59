"""A step in units of each constraint's own scale, for several constraints.

Letters: C constraints.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lit_safe.constraint.controllers import Controller
from lit_safe.constraint.controllers.settings import Setting, check_shapes, clipped, listed, setting
from lit_safe.types import CostEstimate

TINY = 1e-30  # least slope that is divided by, so that a step stays finite


class DiagonalNewton(Controller):
    """multiplier ← clip(multiplier + rate · (estimated cost − limit) / slope, 0, maximum), slope = variance / beta.

    At the objective's optimum E[cost] falls by Var(cost) / beta when the multiplier rises by one, where the variance is
    that among responses to one prompt. So a step with rate 1 is Newton's, along each constraint by itself. It does not
    depend on the unit of a cost: a cost that is 100 times as large has a slope 10,000 times as large.

    The slope is computed from the estimate's variance and not from the changes of past steps. A policy that lags behind
    the multiplier changes less than it will, and a slope from such changes gives steps that are far too large. Noise of
    the estimate would also enter it. The variance has neither problem: it is positive, and if training leaves the
    policy short of its optimum then all slopes are too large by about one factor, which ``rate`` corrects.

    Args:
        rate: Share of Newton's step. 1 is right where the policy settles between steps. If an epoch covers a share a of
            the way, a / 4 does not overshoot (docs/constraints.md).
        smoothing: Share of the earlier value in the smoothed variance, in [0, 1).
        floor: Least variance that is divided by, as a share of the largest one so far. The variance falls to 0 as a
            policy becomes safe, and the step would grow without bound.
        maximum: Upper end(s) of the multiplier, nats per cost unit.

    Raises:
        ValueError: If a value is out of its range.
    """

    def __init__(self, rate: float = 0.5, smoothing: float = 0.5, floor: float = 0.1, maximum: Setting = 10.0) -> None:
        self.rate = float(setting("rate", rate, positive=True))
        self.floor = float(setting("floor", floor, positive=True, most=1.0))
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing must lie in [0, 1), got {smoothing}")
        self.smoothing = smoothing
        self._maximum = setting("maximum", maximum, positive=True)
        self._beta = float("nan")
        self._variance: Tensor | None = None  # smoothed; NaN where none is known yet
        self._largest: Tensor | None = None
        self._used: dict[str, Tensor] = {}

    @property
    def maximum(self) -> Tensor:
        """Upper end, [] or [C]."""
        return self._maximum

    def start(self, multiplier: Tensor, beta: float) -> Tensor:
        """The module's start value; see the protocol."""
        check_shapes(multiplier, maximum=self._maximum)
        self._beta = beta
        return multiplier

    def step(self, multiplier: Tensor, estimate: CostEstimate, limit: Tensor, number: int, total: int | None) -> Tensor:
        """See the class and the protocol. A constraint whose variance is not known keeps its multiplier."""
        new = variance_of(estimate)
        old = new if self._variance is None else self._variance
        mixed = self.smoothing * old + (1 - self.smoothing) * new
        self._variance = torch.where(new.isnan(), old, torch.where(old.isnan(), new, mixed))
        seen = torch.zeros_like(new) if self._largest is None else self._largest
        self._largest = seen.maximum(new.nan_to_num())
        # d E[cost] / d multiplier = -Var(cost) / beta: tests/lit_safe/constraint/test_dual.py compares it with the
        # closed form
        slope = self._variance.nan_to_num().maximum(self.floor * self._largest) / self._beta
        lr = torch.where(slope > 0, self.rate / slope.clamp(min=TINY), 0.0)
        self._used = {"lr": lr}
        excess = estimate.mean.double() - limit.double()
        return clipped(multiplier.double() + lr * excess, self._maximum, multiplier)

    def sentence(self) -> str:
        """The step in words."""
        return (
            f"moves by {self.rate:g} x (cost - limit) / slope, each constraint with its own (the slope is Var(cost) / "
            f"beta), between 0 and {listed(self._maximum)}"
        )

    def curves(self) -> Mapping[str, Tensor]:
        """The step size, nats per squared cost unit."""
        return self._used

    def state_dict(self) -> dict[str, Any]:
        """The variances."""
        return {"variance": self._variance, "largest": self._largest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict()``."""
        self._variance, self._largest = (
            None if state[name] is None else state[name].cpu() for name in ("variance", "largest")
        )


def variance_of(estimate: CostEstimate) -> Tensor:
    """The cost's variance among responses to one prompt, [] or [C] in float64; NaN where it is not known.

    If the estimate has no variance within prompts (one response per prompt), the variance among all responses takes its
    place: squared standard error times number of prompts. It is larger by the variance between prompts, so that a step
    is shorter.
    """
    if estimate.within is not None:
        return estimate.within.double()
    clusters = estimate.effective if estimate.clusters is None else min(estimate.clusters, estimate.effective)
    return estimate.stderr.double() ** 2 * clusters
