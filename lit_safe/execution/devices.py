"""Selects the device on which a command runs its models."""

from typing import Any

import torch

from lit_safe.errors.message import SettingError

NAMES = "auto, cpu, cuda, cuda:<number>, mps"


def chosen_device(name: str, trainer: Any = None) -> torch.device:
    """The device that ``--device`` names.

    Args:
        name: The name of a device, or ``auto``: the trainer's device or, without a trainer, an accelerator if there is
            one, else the CPU.
        trainer: The Lightning Trainer built from the settings, or None.

    Raises:
        ValueError: If the name is not a device, or this machine has no such device.
    """
    there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        if trainer is not None:
            return torch.device(trainer.strategy.root_device)
        return there or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SettingError(f"--device {name} is not a device: use one of {NAMES}") from None
    if device.type == "cpu":
        return torch.device("cpu")
    count = torch.accelerator.device_count() if there is not None else 0
    if there is None or device.type != there.type or (device.index or 0) >= count:
        have = "no accelerator" if there is None else f"{count} of type {there.type}, numbered from 0"
        raise ValueError(f"--device {name} does not exist: this machine has {have}. Use one of {NAMES}")
    return device


def name_for_rank(name: str, local: int | None) -> str:
    """The name of a rank's device: with ``auto`` the ``local``-th accelerator of this machine, else ``name``."""
    there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return name if local is None or name != "auto" or there is None else f"{there.type}:{local}"


def use(device: torch.device) -> torch.device:
    """Make ``device`` the current device of its type, which kernels and random states use. Returns ``device``."""
    if device.type != "cpu" and device.index is not None:
        torch.accelerator.set_device_index(device.index)
    return device
