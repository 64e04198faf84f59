"""The multiplier of a logarithmic barrier, from LBSGD.

Letters: C constraints.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from lit_safe.constraint.controllers import Controller
from lit_safe.constraint.controllers.settings import Setting, check_shapes, clipped, listed, setting
from lit_safe.types import CostEstimate


class LogBarrier(Controller):
    """multiplier = eta / (limit − cost − confidence · stderr) inside the limit, ``recovery`` outside.

    The gradient of LBSGD's barrier −eta · log(limit − E[cost]) is that of E[cost] times eta / slack (Usmanova et al.
    2022, arXiv:2207.10415). Its target therefore is not E[cost] = limit but multiplier = eta / slack: the policy stays
    inside the limit, by less as eta falls.

    LBSGD's proof needs exact smoothness constants and small steps of the policy. Training here has neither: the rule
    steers away from the limit, and proves nothing.

    Args:
        eta: Weight(s) of the barrier, in nats: the multiplier's target times the slack that it keeps.
        confidence: Number of standard errors of the estimate that are subtracted from the slack.
        reg: Least slack(s) that is divided by, in cost units.
        decay: Factor on eta after each step, in (0, 1]. LBSGD halves eta in an outer loop.
        rate: Share of the way to its new value that the multiplier goes in a step, in (0, 1]. With 1 the multiplier
            swings if the policy follows fast; LBSGD limits the policy's step instead.
        recovery: The multiplier(s) outside the limit, where LBSGD reduces the cost alone. Null is ``maximum``.
        maximum: Upper end(s) of the multiplier.

    Raises:
        ValueError: If a value is out of its range.
    """

    def __init__(
        self,
        eta: Setting = 0.1,
        confidence: float = 1.0,
        reg: Setting = 0.01,
        decay: float = 1.0,
        rate: float = 0.25,
        recovery: Setting | None = None,
        maximum: Setting = 10.0,
    ) -> None:
        self.eta = setting("eta", eta, positive=True)
        self.confidence = float(setting("confidence", confidence))
        self.reg = setting("reg", reg, positive=True)
        self.decay = float(setting("decay", decay, positive=True, most=1.0))
        self.rate = float(setting("rate", rate, positive=True, most=1.0))
        self._maximum = setting("maximum", maximum, positive=True)
        self.recovery = self._maximum if recovery is None else setting("recovery", recovery, positive=True)
        self._used: dict[str, Tensor] = {}

    @property
    def maximum(self) -> Tensor:
        """Upper end, [] or [C]."""
        return self._maximum

    def start(self, multiplier: Tensor, beta: float) -> Tensor:
        """The module's start value; see the protocol."""
        check_shapes(multiplier, eta=self.eta, reg=self.reg, recovery=self.recovery, maximum=self._maximum)
        return multiplier

    def step(self, multiplier: Tensor, estimate: CostEstimate, limit: Tensor, number: int, total: int | None) -> Tensor:
        """See the class and the protocol. Where the error is not known (NaN) and counts, the multiplier stays."""
        old = multiplier.double()
        slack = limit.double() - estimate.mean.double()
        if self.confidence:
            slack = slack - self.confidence * estimate.stderr.double()  # LB_SGD, lib/LB_optimizer.py: a_i
        inside = self.eta * self.decay**number / slack.maximum(self.reg)
        goal = torch.where(slack > 0, inside, self.recovery).minimum(self._maximum)
        moved = torch.where(slack.isnan(), old, old + self.rate * (goal - old))
        self._used = {"slack": slack}
        return clipped(moved, self._maximum, multiplier)

    def sentence(self) -> str:
        """The rule in words."""
        less = f" - {self.confidence:g} standard errors" if self.confidence else ""
        return (
            f"goes {100 * self.rate:g} % of the way to {listed(self.eta)} / (limit - cost{less}), and towards "
            f"{listed(self.recovery)} over the limit; at most {listed(self._maximum)}"
        )

    def curves(self) -> Mapping[str, Tensor]:
        """The slack, in cost units."""
        return self._used
