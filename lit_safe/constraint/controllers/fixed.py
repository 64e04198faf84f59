"""A multiplier that stays where it starts."""

from torch import Tensor

from lit_safe.constraint.controllers import Controller
from lit_safe.constraint.controllers.settings import Setting, check_shapes, listed, setting
from lit_safe.types import CostEstimate


class Fixed(Controller):
    """Keeps the multiplier. The cost is estimated and logged, and moves nothing.

    Args:
        value: The multiplier(s), in nats per cost unit. Null keeps ``model.multiplier``.

    Raises:
        ValueError: If ``value`` is negative or not finite.
    """

    def __init__(self, value: Setting | None = None) -> None:
        self.value = None if value is None else setting("value", value)

    @property
    def moves(self) -> bool:
        """Never."""
        return False

    @property
    def own_start(self) -> str:
        """``value``, if it is set."""
        return "" if self.value is None else f"Fixed keeps its value {listed(self.value)}: set it to null"

    def start(self, multiplier: Tensor, beta: float) -> Tensor:
        """``value``; see the protocol."""
        if self.value is None:
            return multiplier
        check_shapes(multiplier, value=self.value)
        return self.value.to(multiplier).expand(multiplier.shape)

    def step(self, multiplier: Tensor, estimate: CostEstimate, limit: Tensor, number: int, total: int | None) -> Tensor:
        """The same multiplier."""
        return multiplier

    def sentence(self) -> str:
        """Why it does not move."""
        return "the controller is Fixed"
