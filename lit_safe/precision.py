"""The dtypes in which values are stored and computed. docs/precision-and-scale.md gives the reasons.

- trainable weights and the optimizer's moments: fp32, for every checkpoint dtype
- frozen weights (reference, base of an adapter, trunk): the checkpoint's dtype, which may be bf16
- matrix products and attention: bf16 with ``trainer.precision: bf16-mixed``, else the dtype of the weights
- log-probs, log-ratios, losses, gradients: fp32
- multiplier, limits, costs, rewards: fp32 or fp64
- means and standard errors: fp64

This module imports no other module of this project, so every part can use it.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

TrainableDtype = Literal["float32", "bfloat16"]
"""Dtype of trainable weights. ``bfloat16`` is for optimizers with stochastic rounding or fp32 master weights."""

TRAINER_PRECISIONS = ("32-true", "bf16-mixed", "64-true")


def check_trainer_precision(precision: str, device: torch.device | None = None) -> None:
    """Refuse precisions in which weight updates, labels or the multiplier lose accuracy, or that the device lacks.

    ``bf16-true`` and ``16-true`` cast weights, multiplier and labels. ``16-mixed`` scales the loss, so clipping and the
    check for finite gradients would see scaled gradients.

    Args:
        precision: ``trainer.precision``.
        device: The device of the training, if it is known.

    Raises:
        ValueError: If ``precision`` is not in ``TRAINER_PRECISIONS``, or the GPU has no products in bf16.
    """
    if precision not in TRAINER_PRECISIONS:
        raise ValueError(
            f"trainer.precision {precision!r} is not supported: use bf16-mixed (weights and multiplier stay in fp32), "
            f"or one of {', '.join(TRAINER_PRECISIONS)}"
        )
    if precision == "bf16-mixed" and device is not None and device.type == "cuda" and not _has_bf16(device):
        raise ValueError(
            f"trainer.precision bf16-mixed: {torch.cuda.get_device_name(device)} has no products in bf16: set "
            "--trainer.precision 32-true, or take a GPU of compute capability 8.0 or more"
        )


def _has_bf16(device: torch.device) -> bool:
    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def hold(parameters: Iterable[nn.Parameter], dtype: TrainableDtype) -> None:
    """Cast trainable weights to ``dtype``, in place. fp64 weights stay fp64 for fp32; frozen weights are unchanged."""
    wanted: torch.dtype = getattr(torch, dtype)
    for parameter in parameters:
        if parameter.requires_grad:
            wider = torch.promote_types(parameter.dtype, wanted)
            parameter.data = parameter.data.to(wider if dtype == "float32" else wanted)


def check_trainable(parameters: Iterable[tuple[str, Tensor]], allowed: str) -> None:
    """Refuse trainable weights below fp32, unless the user configured their dtype.

    Args:
        parameters: Names and weights; may include frozen weights.
        allowed: The dtype that the user configured, ``float32`` if none.

    Raises:
        ValueError: If a weight is refused. The message names the first one.
    """
    for name, weight in parameters:
        kind = str(weight.dtype).removeprefix("torch.")
        if weight.requires_grad and weight.dtype.itemsize < 4 and kind != allowed:
            raise ValueError(
                f"{name} trains in {kind}, where steps of usual size round to nothing: hold it in float32, or set "
                f"trainable_dtype: {kind} with an optimizer that rounds stochastically"
            )


def run_precision(module: Any, device: torch.device | None = None) -> AbstractContextManager[Any]:
    """A context with the precision of the trainer's training steps. Without a trainer it does nothing.

    Args:
        module: A LightningModule or any other object.
        device: The device on which the module runs, if its type may differ from the trainer's.
    """
    trainer = getattr(module, "_trainer", None)  # the public attribute raises if there is no trainer
    if trainer is None:
        return nullcontext()
    plugin = trainer.precision_plugin
    if device is not None and getattr(plugin, "device", device.type) != device.type:
        return torch.autocast(device.type, torch.bfloat16, enabled=plugin.precision == "bf16-mixed")
    context: AbstractContextManager[Any] = plugin.forward_context()
    return context


def compute_dtype(device: torch.device) -> str:
    """Current dtype of matrix products: autocast's, or ``weights`` for the dtype of the weights."""
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return str(torch.get_autocast_dtype(kind)).removeprefix("torch.")
    return "weights"
