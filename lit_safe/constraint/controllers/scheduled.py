"""A multiplier that follows a schedule and does not look at the cost."""

from torch import Tensor

from lit_safe.constraint.controllers import Controller
from lit_safe.constraint.controllers.settings import Setting, check_shapes, clipped, listed, setting
from lit_safe.types import CostEstimate


class Scheduled(Controller):
    """Moves the multiplier in a straight line from ``first`` to ``last``, and keeps it there.

    The cost is estimated and logged. It shows how cost and reward depend on the multiplier in one run, as far as the
    policy follows.

    Args:
        first: The multiplier(s) of the first epoch, nats per cost unit.
        last: The multiplier(s) at the end.
        share: Share of the steps after which ``last`` is reached, in (0, 1].

    Raises:
        ValueError: If a value is out of its range.
    """

    def __init__(self, first: Setting = 0.0, last: Setting = 1.0, share: float = 1.0) -> None:
        self.first, self.last = setting("first", first), setting("last", last)
        self.share = float(setting("share", share, positive=True, most=1.0))

    @property
    def needs_end(self) -> bool:
        """Always: ``share`` is one of all steps."""
        return True

    @property
    def own_start(self) -> str:
        """Always: ``first``."""
        return f"Scheduled starts at its first {listed(self.first)}: give model.multiplier a number"

    def start(self, multiplier: Tensor, beta: float) -> Tensor:
        """``first``; see the protocol."""
        check_shapes(multiplier, first=self.first, last=self.last)
        return self.first.to(multiplier).expand(multiplier.shape)

    def step(self, multiplier: Tensor, estimate: CostEstimate, limit: Tensor, number: int, total: int | None) -> Tensor:
        """See the class and the protocol. No training follows the last step, so the last but one reaches the end."""
        assert total is not None
        done = min(1.0, (number + 1) / max(1.0, self.share * (total - 1)))
        value = self.first + done * (self.last - self.first)
        return clipped(value.expand(multiplier.shape), self.maximum, multiplier)

    def sentence(self) -> str:
        """The way in words."""
        when = "at the end" if self.share == 1 else f"after {100 * self.share:g} % of the steps"
        return f"moves to {listed(self.last)} {when}, whatever the cost"
