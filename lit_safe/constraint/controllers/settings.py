"""Checks the settings of controllers, and writes them in words.

Letters: C constraints.
"""

import torch
from torch import Tensor

from lit_safe.errors.message import SettingError

Setting = float | list[float]
"""One number for all constraints, or one for each."""


def setting(name: str, value: Setting, *, positive: bool = False, most: float = torch.inf) -> Tensor:
    """A setting as [] or [C] in float64.

    Args:
        name: The setting's name, for the message.
        value: Its value.
        positive: Whether 0 is refused.
        most: Largest accepted value.

    Raises:
        ValueError: If an entry is negative, not finite, 0 where ``positive``, or larger than ``most``.
    """
    tensor = torch.tensor(value, dtype=torch.float64)
    fits = (tensor > 0) if positive else (tensor >= 0)
    if tensor.ndim > 1 or not bool((tensor.isfinite() & fits & (tensor <= most)).all()):
        bounds = f"{'>' if positive else '>='} 0 and {'finite' if most == torch.inf else f'<= {most:g}'}"
        raise ValueError(f"{name} must be {bounds}, got {value}")
    return tensor


def check_shapes(multiplier: Tensor, **settings: Tensor) -> None:
    """Check that settings with one entry per constraint have as many entries as the multiplier.

    Raises:
        SettingError: If a setting has another shape. The message names it.
    """
    for name, value in settings.items():
        if value.ndim and value.shape != multiplier.shape:
            raise SettingError(
                f"{name} has shape {list(value.shape)}, the module's multiplier {list(multiplier.shape)}"
            )


def clipped(value: Tensor, maximum: Tensor, like: Tensor) -> Tensor:
    """``value`` within [0, maximum], in the dtype of ``like``."""
    return value.double().clamp(min=0).minimum(maximum.double()).to(like.dtype)


def listed(value: Tensor) -> str:
    """The entries of a setting [] or [C], separated by commas."""
    return ", ".join(f"{entry:g}" for entry in value.reshape(-1).tolist())
