"""From texts to costs that can be trusted: the one place where a cost function is called.

Letters: n responses, C constraints.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from lit_safe.types import CostFunction


@runtime_checkable
class OnDevice(Protocol):
    """A cost function that runs a model, and can run it elsewhere."""

    def use_device(self, device: torch.device) -> None:
        """Run on ``device`` from now on."""


def place(cost: object, device: torch.device) -> None:
    """Let a cost function that can (``OnDevice``) run on ``device``; one that chose a place for itself stays there."""
    if isinstance(cost, OnDevice):
        cost.use_device(device)


def score(cost: CostFunction, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
    """Costs [n] or [n, C] in float64 on the CPU, of ``n`` responses to ``n`` prompts.

    The cost function runs without gradient and outside autocast: a scorer's own products keep the types that it was
    fitted with. It may return integers or booleans (True is unsafe), on any device.

    Raises:
        ValueError: If it returns no tensor of real numbers, or another shape; its class is named.
    """
    name = name_of(cost)
    with torch.no_grad(), _no_autocast():
        found = cost(list(prompts), list(responses))
    if not isinstance(found, Tensor):
        raise ValueError(f"the cost function {name} gave a {type(found).__name__}, not a torch.Tensor of costs")
    if found.is_complex() or found.is_quantized or found.is_sparse:
        raise ValueError(f"the cost function {name} gave costs of type {found.dtype}: they must be real numbers")
    if found.ndim not in (1, 2) or (found.ndim == 2 and not found.shape[1]):
        raise ValueError(
            f"the cost function {name} gave costs of shape {list(found.shape)} for {len(responses)} responses: it must "
            "give one number for each, or a row of one number for each constraint"
        )
    if len(found) != len(responses):
        raise ValueError(f"the cost function {name} gave {len(found)} costs of {len(responses)} responses")
    return found.detach().cpu().double()


def check_finite(cost: CostFunction, costs: Tensor, labels: Sequence[object]) -> None:
    """Refuse costs [n] or [n, C] of which one is NaN or infinite.

    Raises:
        ValueError: Naming the cost function and the label of the first such response.
    """
    wrong_n = ~costs.isfinite().reshape(len(costs), -1).all(-1)
    if wrong_n.any():
        first = int(wrong_n.nonzero()[0])
        raise ValueError(f"the cost function {name_of(cost)} gave {costs[first].tolist()} for {labels[first]}")


def name_of(cost: object) -> str:
    """A function's name, or an object's class."""
    return str(getattr(cost, "__name__", type(cost).__name__))


@contextmanager
def _no_autocast() -> Iterator[None]:
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    with ExitStack() as stack:
        for kind in {"cpu", "cpu" if accelerator is None else accelerator.type}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield
