"""Finds the best iterate of a run that meets its limits."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning import Trainer

from lit_safe.constraint.limits import Standing
from lit_safe.protocols.trainer import connected

log = logging.getLogger(__name__)

ACCURACY = ("eval/rewards/accuracies", "eval/logps/accuracies")  # the first of these that validation logs is used


class Best:
    """Finds the epoch whose end meets every limit and has the highest held-out accuracy. Ties go to the earlier epoch.

    ``record`` describes this epoch's end: epoch, optimizer step, accuracy and its name (null if no validation measured
    it at that step), and the limit, estimate, one-sided bound and verdict of each constraint.
    """

    def __init__(self) -> None:
        self.record: dict[str, Any] | None = None
        self._accuracy: dict[str, Any] | None = None

    def check(self, trainer: Trainer) -> None:
        """Check that the run ships an iterate and measures the cost.

        Raises:
            ValueError: If the run ships an average, or has no cost estimator.
        """
        for callback in connected(trainer).callbacks:
            if getattr(callback, "ship", "last") == "average":
                raise ValueError("keep_best keeps an iterate, but dual.ship: average ships none: choose one of the two")
        if _dual(trainer) is None:
            raise ValueError("keep_best needs an estimate of the cost at the ends of epochs: set dual.estimator")

    def validated(self, trainer: Trainer) -> None:
        """Store the accuracy of a validation and its step."""
        found = [(name, trainer.callback_metrics[name]) for name in ACCURACY if name in trainer.callback_metrics]
        value = float(found[0][1]) if found else math.nan
        known = not math.isnan(value)
        self._accuracy = {"step": trainer.global_step, "name": found[0][0], "value": value} if known else None

    def improves(self, trainer: Trainer, epoch: int) -> bool:
        """Whether the end of ``epoch`` is the best so far. If so, it becomes the ``record``."""
        dual = _dual(trainer)
        standing: Standing | None = None if dual is None else dual.standing
        if standing is None or standing.epoch != epoch or not standing.feasible:
            return False
        accuracy = self._accuracy
        here = accuracy if accuracy is not None and accuracy["step"] == trainer.global_step else None
        slack = min(limit - upper for limit, upper in zip(standing.limit, standing.upper, strict=True))
        record = {
            "epoch": epoch,
            "step": trainer.global_step,
            "accuracy": None if here is None else here["value"],
            "measured_by": None if here is None else here["name"],
            "slack": slack,
            "limits": standing.as_json(),
        }
        if self.record is not None and _rank(record) <= _rank(self.record):
            return False
        self.record = record
        return True

    def say(self, path: Path) -> None:
        """Log which iterate was kept, or that none was."""
        if self.record is None:
            log.warning("no epoch ended with every limit met by its one-sided 95 %% bound: there is no %s", path)
            return
        measured = (
            "" if self.record["accuracy"] is None else f", {self.record['measured_by']} {self.record['accuracy']:.4g}"
        )
        log.info("best feasible iterate: the end of epoch %d%s, in %s", self.record["epoch"], measured, path)

    def state_dict(self) -> dict[str, Any]:
        """The state as plain values."""
        return {"record": self.record, "accuracy": self._accuracy}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict()``."""
        self.record, self._accuracy = state.get("record"), state.get("accuracy")


def _rank(record: Mapping[str, Any]) -> tuple[bool, float]:
    measured = record["accuracy"] is not None
    return measured, record["accuracy"] if measured else record["slack"]


def _dual(trainer: Trainer) -> Any:
    """The callback that estimates costs, or None."""
    found = [
        c for c in connected(trainer).callbacks if hasattr(c, "standing") and getattr(c, "estimator", None) is not None
    ]
    return found[0] if found else None
