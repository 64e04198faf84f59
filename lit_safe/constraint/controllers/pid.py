"""A proportional, integral and derivative controller of the multiplier.

Letters: C constraints.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lit_safe.constraint.controllers import Controller
from lit_safe.constraint.controllers.settings import Setting, check_shapes, clipped, listed, setting
from lit_safe.types import CostEstimate


class PIDLagrangian(Controller):
    """multiplier = kp · (smoothed excess) + integral of ki · excess + kd · (rise of the smoothed cost), at least 0.

    The excess is the estimated cost minus the limit. Stooke, Achiam & Abbeel 2020 (arXiv:2007.03964, algorithm 2), with
    the names of OmniSafe (``omnisafe/common/pid_lagrange.py``). The integral starts at ``model.multiplier``. OmniSafe
    takes a step per epoch of thousands of interactions and its defaults smooth over dozens of steps; the defaults here
    suit runs of 10 to 50 steps and costs of order 1.

    Two things differ from OmniSafe. The smoothed cost starts at the first cost and not at 0, so that adding a constant
    to cost and limit changes nothing. The integral stays below the maximum, so that it does not grow without bound
    while a limit is out of reach.

    Args:
        pid_kp: Proportional gain(s), nats per squared cost unit.
        pid_ki: Integral gain(s) per step. With ``pid_kp`` and ``pid_kd`` 0 this is the projected subgradient step.
        pid_kd: Derivative gain(s). Only a rise of the cost counts.
        pid_d_delay: Number of steps over which the rise is measured.
        pid_delta_p_ema_alpha: Share of the earlier value in the smoothed excess, in [0, 1).
        pid_delta_d_ema_alpha: Share of the earlier value in the smoothed cost, in [0, 1).
        sum_norm: Lifts ``penalty_max``. In OmniSafe the loss is then divided by 1 + multiplier; ``ConstrainedDPO`` does
            not divide.
        diff_norm: Keeps integral and multiplier within [0, 1].
        penalty_max: Upper end(s) of the multiplier, unless a norm is on.

    Raises:
        ValueError: If a value is out of its range, or all gains are 0.
    """

    def __init__(
        self,
        pid_kp: Setting = 0.1,
        pid_ki: Setting = 0.1,
        pid_kd: Setting = 0.0,
        pid_d_delay: int = 1,
        pid_delta_p_ema_alpha: float = 0.0,
        pid_delta_d_ema_alpha: float = 0.0,
        sum_norm: bool = False,
        diff_norm: bool = False,
        penalty_max: Setting = 10.0,
    ) -> None:
        gains = {"pid_kp": pid_kp, "pid_ki": pid_ki, "pid_kd": pid_kd}
        self.kp, self.ki, self.kd = (setting(name, value) for name, value in gains.items())
        if not any(bool((gain > 0).any()) for gain in (self.kp, self.ki, self.kd)):
            raise ValueError("pid_kp, pid_ki and pid_kd are all 0, and the multiplier would always be its start value")
        alphas = {"pid_delta_p_ema_alpha": pid_delta_p_ema_alpha, "pid_delta_d_ema_alpha": pid_delta_d_ema_alpha}
        for name, alpha in alphas.items():
            if not 0 <= alpha < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {alpha}")
        if pid_d_delay < 1:
            raise ValueError(f"pid_d_delay must be at least 1, got {pid_d_delay}")
        if sum_norm and diff_norm:
            raise ValueError("sum_norm and diff_norm exclude each other")
        self.delay, self.alpha_p, self.alpha_d = pid_d_delay, pid_delta_p_ema_alpha, pid_delta_d_ema_alpha
        limits: Setting = 1.0 if diff_norm else penalty_max
        self._maximum = torch.tensor(torch.inf) if sum_norm else setting("penalty_max", limits, positive=True)
        self._integral: Tensor | None = None
        self._excess: Tensor | None = None  # smoothed
        self._costs: list[Tensor] = []  # smoothed, of the last ``delay`` steps
        self._used: dict[str, Tensor] = {}

    @property
    def maximum(self) -> Tensor:
        """Upper end, [] or [C]; infinite with ``sum_norm``."""
        return self._maximum

    def start(self, multiplier: Tensor, beta: float) -> Tensor:
        """The module's start value; see the protocol."""
        check_shapes(multiplier, pid_kp=self.kp, pid_ki=self.ki, pid_kd=self.kd, penalty_max=self._maximum)
        return multiplier

    def step(self, multiplier: Tensor, estimate: CostEstimate, limit: Tensor, number: int, total: int | None) -> Tensor:
        """See the class and the protocol."""
        cost, top = estimate.mean.double(), self._maximum.double()
        excess = cost - limit.double()
        integral = multiplier.double() if self._integral is None else self._integral
        # OmniSafe, pid_update: its lines in order, with the two changes that the class names
        self._integral = (integral + self.ki * excess).clamp(min=0).minimum(top)
        smoothed = torch.zeros_like(excess) if self._excess is None else self._excess
        self._excess = self.alpha_p * smoothed + (1 - self.alpha_p) * excess
        before = self._costs or [cost]
        latest = self.alpha_d * before[-1] + (1 - self.alpha_d) * cost
        rise = (latest - before[0]).clamp(min=0)
        self._costs = [*before, latest][-self.delay :]
        self._used = {"pid_p": self.kp * self._excess, "pid_i": self._integral, "pid_d": self.kd * rise}
        return clipped(sum(self._used.values(), torch.zeros_like(excess)), top, multiplier)

    def sentence(self) -> str:
        """The step in words."""
        gains = f"kp {listed(self.kp)}, ki {listed(self.ki)}, kd {listed(self.kd)}"
        top = "without a maximum" if bool(self._maximum.isinf().all()) else f"between 0 and {listed(self._maximum)}"
        return f"follows a PID rule on cost - limit ({gains}), {top}"

    def curves(self) -> Mapping[str, Tensor]:
        """The three terms, whose sum is the multiplier unless it is clipped."""
        return self._used

    def state_dict(self) -> dict[str, Any]:
        """Integral, smoothed excess and smoothed costs."""
        return {"integral": self._integral, "excess": self._excess, "costs": list(self._costs)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict()``."""
        self._integral, self._excess = (
            None if state[name] is None else state[name].cpu() for name in ("integral", "excess")
        )
        self._costs = [cost.cpu() for cost in state["costs"]]
