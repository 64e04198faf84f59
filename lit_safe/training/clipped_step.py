"""The end of an optimizer step: clip the gradient, check its norm, update the weights."""

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from lit_safe.sharded import whole
from lit_safe.training.finite import FiniteNorms


@runtime_checkable
class ClipsInItsStep(Protocol):
    """A strategy whose engine clips the gradient inside its optimizer step. No parameter has a gradient before it."""

    def clip_at(self, bound: float) -> None:
        """Scale the gradient of the next step to a norm of at most ``bound``."""

    def norm_of_step(self) -> Tensor:
        """The norm [] of the last step's gradient over all ranks, before clipping."""


def clipped_step(strategy: Any, optimizer: Any, bound: float, norms: FiniteNorms, step: int) -> Tensor:
    """Clip the gradient to the 2-norm ``bound`` over all ranks, and take the step.

    Args:
        strategy: Of the trainer.
        optimizer: Lightning's.
        bound: Infinity for none.
        norms: Checks the norm.
        step: Number of the step, for messages.

    Returns:
        The norm [] before clipping.

    Raises:
        FloatingPointError: If the norm is not finite. The weights are unchanged then.
    """
    if isinstance(strategy, ClipsInItsStep):
        strategy.clip_at(bound)
        optimizer.step()
        norm = strategy.norm_of_step()
        norms.check(norm, step)
        return norm
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = whole(torch.nn.utils.clip_grad_norm_(parameters, bound)).detach()
    norms.take(norm, optimizer.optimizer, step)
    optimizer.step()
    return norm
