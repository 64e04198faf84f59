"""Rules that choose the next multiplier from an estimate of the cost. Each file has one rule.

Letters: C constraints; a multiplier is [] or [C], in reward nats per cost unit.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from lit_safe.types import CostEstimate


@runtime_checkable
class Controller(Protocol):
    """Chooses the next multiplier after each estimate of the cost. A subclass overrides ``step``, and what differs.

    Every rank calls the controller with the same numbers. A rule must use no other source of randomness or state than
    its own ``state_dict`` (:class:`Stateful`), so that a resumed run takes the same steps.
    """

    @property
    def maximum(self) -> Tensor:
        """Upper end of the multiplier, [] or [C]; infinite if the rule has none."""
        return torch.tensor(torch.inf)

    @property
    def moves(self) -> bool:
        """Whether the rule may change a multiplier. If not, it takes no step."""
        return True

    @property
    def needs_end(self) -> bool:
        """Whether the rule uses the total number of steps."""
        return False

    @property
    def minimum(self) -> Tensor:
        """Lower end of the multiplier, [] or [C]."""
        return torch.tensor(0.0)

    @property
    def own_start(self) -> str:
        """Why the rule does not start at a given multiplier, and what to change. Empty if it does."""
        return ""

    def start(self, multiplier: Tensor, beta: float) -> Tensor:
        """The multiplier of the first epoch. This is called once before training, and again before a resume.

        Args:
            multiplier: The module's start value, [] or [C].
            beta: The objective's beta.

        Raises:
            ValueError: If the rule's settings do not fit the number of constraints, or the start is out of range.
        """
        return multiplier

    def step(self, multiplier: Tensor, estimate: CostEstimate, limit: Tensor, number: int, total: int | None) -> Tensor:
        """The next multiplier, in [0, maximum] and in the dtype of ``multiplier``.

        Args:
            multiplier: [] or [C], of the epoch that has ended.
            estimate: E[cost] and its error. The mean is finite.
            limit: [] or [C], float64: the cost that the rule steers to.
            number: Number of the step, from 0.
            total: Number of steps of the run, None if it is unknown.
        """

    def sentence(self) -> str:
        """How the multiplier moves, to follow 'λ starts at 0 and'. If it does not move: why."""

    def curves(self) -> Mapping[str, Tensor]:
        """What the last step used, by logged name. In an epoch without a step, zeros are logged."""
        return {}


@runtime_checkable
class Stateful(Protocol):
    """A controller that remembers earlier steps."""

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors and plain values, loadable with ``weights_only=True``."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict()``."""
