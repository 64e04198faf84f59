"""Measures where the time of a training step goes, and writes a trace of one step."""

import contextlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch.profiler import ProfilerActivity, profile

from lit_safe.phases import PhaseClock

log = logging.getLogger(__name__)

REST = "loss and the rest"
PHASES = ("data", "policy forward", "reference", "head", "backward", "optimizer", "metrics", REST)
REPORT, TRACE = "profile.json", "trace.json"


class StepProfile(Callback):
    """Times the parts of ``steps`` optimizer steps, then writes a trace of one more.

    The parts are those of ``lit_safe.phases``. On a GPU each waits for the device, so that its time is its own.

    Args:
        folder: Folder of ``profile.json`` and ``trace.json``.
        steps: Number of timed steps.
        warm_up: Number of steps before them.
    """

    def __init__(self, folder: Path, steps: int, warm_up: int) -> None:
        self.folder, self.steps, self.warm_up = folder, steps, warm_up
        self.done = 0
        self.clock = PhaseClock()
        self._now = contextlib.ExitStack()

    @property
    def total(self) -> int:
        """Number of steps of the run."""
        return self.warm_up + self.steps + 1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the run's device at both ends of every part."""
        device = pl_module.device
        if device.type == "cuda":
            self.clock = PhaseClock(lambda: torch.cuda.synchronize(device))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock after the warm-up, the trace after the timed steps, and stop after one more."""
        self.done += 1
        if self.done == self.warm_up:
            self._now.enter_context(self.clock.running(REST))
        elif self.done == self.warm_up + self.steps:
            self._now.close()
            kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
            trace = profile(activities=kinds)
            self._now.callback(self._write, trace, trainer.is_global_zero)
            self._now.enter_context(trace)
            self._now.enter_context(PhaseClock().running(REST))  # names the parts in the trace
        elif self.done == self.total:
            self._now.close()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table and write the report, on the first rank.

        Raises:
            ValueError: The run had fewer steps than ``total``.
        """
        if self.done < self.total:
            raise ValueError(f"the run ended after {self.done} steps, and this profile needs {self.total}")
        if trainer.is_global_zero:
            self._report(str(pl_module.device), str(trainer.precision))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop the clock of a run that failed."""
        self._now.close()

    def _write(self, trace: profile, first: bool) -> None:
        if first:
            self.folder.mkdir(parents=True, exist_ok=True)
            trace.export_chrome_trace(str(self.folder / TRACE))

    def _report(self, device: str, precision: str) -> None:
        seconds = {name: self.clock.seconds[name] / self.steps for name in PHASES}
        found = {
            "steps": self.steps,
            "device": device,
            "precision": precision,
            "seconds_per_step": sum(seconds.values()),
            "seconds": seconds,
            "share": shares(seconds),
        }
        (self.folder / REPORT).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        log.info("%d steps, %.3f s each, on %s in %s", self.steps, found["seconds_per_step"], device, precision)
        for name, share in shares(seconds).items():
            log.info("  %-18s %5.1f %% %9.1f ms", name, 100 * share, 1000 * seconds[name])
        log.info("trace of one more step: %s (open it with https://ui.perfetto.dev)", self.folder / TRACE)


def shares(seconds: Mapping[str, float]) -> dict[str, float]:
    """Each part's share of the sum, in [0, 1]."""
    total = sum(seconds.values())
    return {name: value / total for name, value in seconds.items()}
