"""In which type each number of a run is held and computed; docs/precision.md says why.

- weights that train, and the optimizer's moments: fp32, whatever the checkpoint's type
- weights that do not train (reference, base of an adapter, trunk): the checkpoint's type, which may be bf16
- products and attention: bf16 under ``trainer.precision: bf16-mixed``, else the type of the weights
- log-probs, log-ratios, losses, gradients: fp32
- multiplier, limits, costs, rewards: fp32 or fp64
- means and standard errors: fp64

This module imports torch and nothing of ours, so that every part may use it.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

TrainableDtype = Literal["float32", "bfloat16"]
"""In which type trained weights are held; ``bfloat16`` is for optimizers that round stochastically or keep masters."""

TRAINER_PRECISIONS = ("32-true", "bf16-mixed", "64-true")


def check_trainer_precision(precision: str) -> None:
    """Refuse what would lose weights' steps, labels or the multiplier.

    ``bf16-true`` and ``16-true`` cast weights, multiplier and labels. ``16-mixed`` scales the loss, so that clipping
    and the check for finite gradients would see scaled ones.

    Raises:
        ValueError: If ``trainer.precision`` is none of ``TRAINER_PRECISIONS``.
    """
    if precision not in TRAINER_PRECISIONS:
        raise ValueError(
            f"trainer.precision {precision!r} is not supported: use bf16-mixed (weights and multiplier stay in fp32), "
            f"or one of {', '.join(TRAINER_PRECISIONS)}"
        )


def hold(parameters: Iterable[nn.Parameter], dtype: TrainableDtype) -> None:
    """Hold what trains in ``dtype``, in place; fp64 stays fp64 where fp32 is asked for, and frozen weights stay."""
    wanted: torch.dtype = getattr(torch, dtype)
    for parameter in parameters:
        if parameter.requires_grad:
            wider = torch.promote_types(parameter.dtype, wanted)
            parameter.data = parameter.data.to(wider if dtype == "float32" else wanted)


def check_trainable(parameters: Iterable[tuple[str, Tensor]], allowed: str) -> None:
    """Refuse trained weights below fp32 that nobody asked for.

    Args:
        parameters: Names and weights, frozen ones among them.
        allowed: The type below fp32 that was asked for by name, or ``float32``.

    Raises:
        ValueError: Naming the first such weight.
    """
    for name, weight in parameters:
        kind = str(weight.dtype).removeprefix("torch.")
        if weight.requires_grad and weight.dtype.itemsize < 4 and kind != allowed:
            raise ValueError(
                f"{name} trains in {kind}, where steps of usual size round to nothing: hold it in float32, or ask for "
                f"trainable_dtype: {kind} with an optimizer that rounds stochastically"
            )


def run_precision(module: Any, device: torch.device | None = None) -> AbstractContextManager[Any]:
    """The precision that the trainer of ``module`` gives to training steps; nothing where there is no trainer.

    Args:
        module: A LightningModule, or anything else.
        device: Where it runs, if that may be another kind of device than the trainer's.
    """
    trainer = getattr(module, "_trainer", None)  # the public name raises where there is none
    if trainer is None:
        return nullcontext()
    plugin = trainer.precision_plugin
    if device is not None and getattr(plugin, "device", device.type) != device.type:
        return torch.autocast(device.type, torch.bfloat16, enabled=plugin.precision == "bf16-mixed")
    context: AbstractContextManager[Any] = plugin.forward_context()
    return context


def compute_dtype(device: torch.device) -> str:
    """The type in which products are made now: autocast's, or ``weights`` for that of the weights."""
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return str(torch.get_autocast_dtype(kind)).removeprefix("torch.")
    return "weights"
