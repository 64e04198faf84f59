"""A trainer on torch's meta device, whose tensors have no values: whatever reads one ends the run.

A real accelerator would wait at such a place, and nothing would show it.
"""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.loops import fit_loop
from lightning.pytorch.strategies import SingleDeviceStrategy

from tests.lit_safe.pair_world import trainer


class _Any(CPUAccelerator):
    """An accelerator that takes any device."""

    def setup_device(self, device: torch.device) -> None:
        pass


class _OnMeta(SingleDeviceStrategy):
    """Computes shapes alone."""

    def __init__(self) -> None:
        super().__init__(device=torch.device("meta"), accelerator=_Any())

    def teardown(self) -> None:
        """Leave the module where it is: it has no values to bring back."""


def on_meta(folder: Path, patch: pytest.MonkeyPatch, **options: Any) -> Trainer:
    """A trainer of modules whose pair is loaded, because a file has values. Torch has no autocast for this device."""
    enabled, autocast = torch.is_autocast_enabled, torch.autocast

    def autocast_of(device_type: str, *given: Any, **named: Any) -> AbstractContextManager[Any]:
        return nullcontext() if device_type == "meta" else autocast(device_type, *given, **named)

    patch.setattr(torch, "is_autocast_enabled", lambda kind="cpu": kind != "meta" and enabled(kind))
    patch.setattr(torch, "autocast", autocast_of)
    patch.setattr(fit_loop, "has_len_all_ranks", lambda *_, **named: True)
    return trainer(folder, accelerator="auto", strategy=_OnMeta(), **options)
