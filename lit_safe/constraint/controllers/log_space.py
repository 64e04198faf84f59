"""The dual step of Safe-RLHF: gradient ascent on the logarithm of the multiplier.

Letters: C constraints.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lit_safe.constraint.controllers import Controller
from lit_safe.constraint.controllers.settings import Setting, check_shapes, clipped, listed, setting
from lit_safe.errors.message import SettingError
from lit_safe.types import CostEstimate


class LogSpace(Controller):
    """s ← s + lr · λ · (mean cost − limit), with the multiplier λ = exp(s). Stays in [minimum, maximum].

    Safe-RLHF (Dai et al. 2023, arXiv:2310.12773) takes this step after every batch of responses, with the mean of the
    costs of its last 128 responses and ``lr`` 0.1, ``init`` 1, ``maximum`` 5. Here a step follows each estimate.

    The step is proportional to λ: it is small where λ is small, and from 0 the multiplier would never rise. Safe-RLHF
    has no ``minimum``.

    Args:
        init: Start value(s) of λ, nats per cost unit. Null takes ``model.multiplier``, which must be at least
            ``minimum`` then; ``auto`` needs null here, and starts at ``minimum`` if the estimate is lower.
        lr: Step size(s), per nat (nats per squared cost unit, divided by λ²).
        maximum: Upper end(s) of λ.
        minimum: Lower end(s) of λ, > 0. One step that is too large would otherwise take λ to 0, where it stays.
        delay: Number of steps at the start that only record the cost.
        window: Number of last estimates whose mean is compared with the limit.

    Raises:
        ValueError: If a value is out of its range.
    """

    def __init__(
        self,
        init: Setting | None = None,
        lr: Setting = 0.1,
        maximum: Setting = 10.0,
        minimum: Setting = 1e-3,
        delay: int = 0,
        window: int = 1,
    ) -> None:
        self.init = None if init is None else setting("init", init, positive=True)
        self.lr = setting("lr", lr, positive=True)
        self._maximum = setting("maximum", maximum, positive=True)
        self._minimum = setting("minimum", minimum, positive=True)
        if delay < 0 or window < 1:
            raise ValueError(f"delay must be >= 0 and window >= 1, got {delay} and {window}")
        if bool((self._minimum > self._maximum).any()):
            raise ValueError(f"minimum must be <= maximum, got {minimum} and {maximum}")
        self.delay, self.window = delay, window
        self._costs: list[Tensor] = []

    @property
    def maximum(self) -> Tensor:
        """Upper end, [] or [C]."""
        return self._maximum

    @property
    def minimum(self) -> Tensor:
        """Lower end, [] or [C], above 0."""
        return self._minimum

    @property
    def own_start(self) -> str:
        """``init``, if it is set."""
        return "" if self.init is None else f"LogSpace starts at its init {listed(self.init)}: set it to null"

    def start(self, multiplier: Tensor, beta: float) -> Tensor:
        """``init``; see the protocol."""
        check_shapes(multiplier, lr=self.lr, maximum=self._maximum, minimum=self.minimum)
        if self.init is None:
            if bool((multiplier < self.minimum).any()):
                raise SettingError(
                    f"model.multiplier {multiplier.tolist()} is below minimum {listed(self.minimum)}, and a step in "
                    "log space leaves 0 never: set dual.controller.init"
                )
            return multiplier
        check_shapes(multiplier, init=self.init)
        if bool((self.init < self.minimum).any()):
            raise SettingError(f"init {listed(self.init)} is below minimum {listed(self.minimum)}")
        return self.init.to(multiplier).expand(multiplier.shape)

    def step(self, multiplier: Tensor, estimate: CostEstimate, limit: Tensor, number: int, total: int | None) -> Tensor:
        """See the class and the protocol."""
        self._costs = [*self._costs, estimate.mean.double()][-self.window :]
        if number < self.delay:
            return multiplier
        old = multiplier.double().maximum(self.minimum)
        excess = torch.stack(self._costs).mean(0) - limit.double()
        # Safe-RLHF, ppo_lag/trainer.py: SGD on the loss -(mean cost - limit) exp(s), then s is clamped from above
        log_new = old.log() + self.lr * old * excess
        log_new = log_new.maximum(self.minimum.log()).minimum(self._maximum.log())
        return clipped(log_new.exp(), self._maximum, multiplier)

    def sentence(self) -> str:
        """The step in words."""
        window = "" if self.window == 1 else f", cost being the mean of {self.window} estimates"
        delay = f" after {self.delay} steps" if self.delay else ""
        return (
            f"log λ moves by {listed(self.lr)} x λ x (cost - limit){delay}, λ between {listed(self.minimum)} and "
            f"{listed(self._maximum)}{window}"
        )

    def state_dict(self) -> dict[str, Any]:
        """The estimates in the window."""
        return {"costs": list(self._costs)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict()``."""
        self._costs = [cost.cpu() for cost in state["costs"]]
