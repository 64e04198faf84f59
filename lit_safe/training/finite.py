"""Refuses gradient norms that are not finite, without waiting for a device that computes by itself."""

from collections.abc import Callable

import torch
from torch import Tensor

from lit_safe.sharded import is_shared


class FiniteNorms:
    """Checks the gradient norm of each optimizer step. A step whose norm is not finite changes no weight.

    On a CPU, and with an optimizer that cannot leave out a step by itself, the norm is read at once. Torch's fused Adam
    and AdamW leave out such a step on the device (their ``found_inf``). The norm is then read while the device computes
    the next step, and the error comes before that step changes a weight.
    """

    def __init__(self) -> None:
        self._waiting: tuple[Callable[[], float], int] | None = None

    def take(self, norm: Tensor, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Check the norm [] of a step that ``optimizer`` will take, or let it leave out the step and check later.

        Raises:
            FloatingPointError: If this norm, or that of the step before, is not finite.
        """
        self.settle()
        read = _read_later(norm) if leaves_out_steps(optimizer) else None
        if read is None:
            _check(norm.item(), step)
            return
        optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]  # torch reads it where it is set
        self._waiting = read, step

    def check(self, norm: Tensor, step: int) -> None:
        """Check the norm [] of a step that was taken, or left out because of its norm.

        Raises:
            FloatingPointError: If it is not finite.
        """
        _check(norm.item(), step)

    def settle(self) -> None:
        """Wait for a norm that was not checked yet.

        Raises:
            FloatingPointError: If it is not finite.
        """
        if self._waiting is not None:
            (read, step), self._waiting = self._waiting, None
            _check(read(), step)


def leaves_out_steps(optimizer: torch.optim.Optimizer) -> bool:
    """Whether this optimizer leaves out a step where its attribute ``found_inf`` is 1, with its step counts."""
    fused = all(group.get("fused") for group in optimizer.param_groups)
    # torch has no fused kernel for weights of which each rank holds a part and a flag that all hold
    shared = is_shared(p for group in optimizer.param_groups for p in group["params"])
    return type(optimizer) in (torch.optim.Adam, torch.optim.AdamW) and fused and not shared


def _read_later(value: Tensor) -> Callable[[], float] | None:
    """A function that waits for ``value`` [] alone, and not for what its device is given later. None: read it now."""
    if not value.is_cuda:
        return None
    host = torch.empty((), dtype=value.dtype, pin_memory=True)
    host.copy_(value.detach(), non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def read() -> float:
        copied.synchronize()
        return float(host)

    return read


def _check(norm: float, step: int) -> None:
    if not -float("inf") < norm < float("inf"):
        raise FloatingPointError(f"gradient norm is {norm} at optimizer step {step}")
