"""Calls cost functions on texts and checks what they return. All calls of cost functions are made here.

Letters: n responses, C constraints.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from lit_safe.types import CostFunction

ROUNDING = 1e-6  # of the width of a declared range: costs are often computed in fp32


@runtime_checkable
class OnDevice(Protocol):
    """A cost function that runs a model and can move it to another device."""

    def use_device(self, device: torch.device) -> None:
        """Run on ``device`` from now on."""


def place(cost: object, device: torch.device) -> None:
    """Move a cost function to ``device`` if it supports that (``OnDevice``). It may keep its own device."""
    if isinstance(cost, OnDevice):
        cost.use_device(device)


def score(cost: CostFunction, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
    """Costs [n] or [n, C] in float64 on the CPU, of ``n`` responses to ``n`` prompts.

    The cost function runs without gradient and outside autocast, so a scorer computes in the dtypes that it was fitted
    with. It may return integers or booleans (True is unsafe), on any device.

    Raises:
        ValueError: If it does not return a tensor of real numbers, or the shape is wrong. The message names the class.
    """
    with torch.no_grad(), _no_autocast():
        found = cost(list(prompts), list(responses))
    return as_costs(cost, found, len(responses))


def as_costs(cost: object, found: object, count: int) -> Tensor:
    """Costs [n] or [n, C] in float64 on the CPU, from what ``cost`` returned for ``count`` responses.

    Raises:
        ValueError: As in ``score``.
    """
    name = name_of(cost)
    if not isinstance(found, Tensor):
        raise ValueError(f"the cost function {name} gave a {type(found).__name__}, not a torch.Tensor of costs")
    if found.is_complex() or found.is_quantized or found.is_sparse:
        raise ValueError(f"the cost function {name} gave costs of type {found.dtype}: they must be real numbers")
    if found.ndim not in (1, 2) or (found.ndim == 2 and not found.shape[1]):
        raise ValueError(
            f"the cost function {name} gave costs of shape {list(found.shape)} for {count} responses: it must "
            "give one number for each, or a row of one number for each constraint"
        )
    if len(found) != count:
        raise ValueError(f"the cost function {name} gave {len(found)} costs of {count} responses")
    return found.detach().cpu().double()


def check_scores(cost: CostFunction, costs: Tensor, labels: Sequence[object], *, finite: bool = True) -> None:
    """Check that costs [n] or [n, C] are finite, and inside the range that the cost function declares.

    Args:
        cost: The cost function.
        costs: What it gave.
        labels: Names of the responses for messages.
        finite: False lets NaN pass.

    Raises:
        ValueError: If a cost is NaN, infinite or outside the range. The message names the cost function and the
            response's label.
    """
    wrong_n = ~costs.isfinite().reshape(len(costs), -1).all(-1)
    if finite and wrong_n.any():
        first = int(wrong_n.nonzero()[0])
        raise ValueError(f"the cost function {name_of(cost)} gave {costs[first].tolist()} for {labels[first]}")
    declared = declared_range(cost)
    if declared is None:
        return
    low, high = declared
    slack = ROUNDING * (high - low)
    outside_n = ((costs < low - slack) | (costs > high + slack)).reshape(len(costs), -1).any(-1)
    if outside_n.any():
        first = int(outside_n.nonzero()[0])
        raise ValueError(
            f"the cost function {name_of(cost)} gave {costs[first].tolist()} for {labels[first]}, outside the range "
            f"[{low:g}, {high:g}] that it declares: correct `range` on its class or card, or set it to null"
        )


def declared_range(cost: object) -> tuple[float, float] | None:
    """The smallest and the largest cost that a cost function can give, in its units, as its attribute ``range`` says.

    None if it declares nothing.

    Raises:
        ValueError: If the attribute is not two finite numbers in order.
    """
    declared = getattr(cost, "range", None)
    if declared is None or callable(declared):
        return None
    try:
        low, high = (float(end) for end in declared)
    except (TypeError, ValueError):
        low = high = math.nan
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"the range of the cost function {name_of(cost)} is {declared}: it must be (low, high)")
    return low, high


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
