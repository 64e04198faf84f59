"""What a run says before it starts and after it ends."""

import logging
import time
from typing import Any

from lightning import Callback, LightningModule, Trainer

from lit_safe.protocols.trainer import connected
from lit_safe.report.before_after import BeforeAfter
from lit_safe.report.outcome import log_hparams
from lit_safe.report.tensorboard import add_text
from lit_safe.screen.closing import closing
from lit_safe.screen.opening import opening
from lit_safe.training.module import PreferenceAlignment
from lit_safe.training.stepping import StepModule

log = logging.getLogger(__name__)


class Announce(Callback):
    """Says what will run before the first step, and what came out after the last: at most 15 lines each.

    TensorBoard gets both as texts.
    """

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._opening = ""  # for TensorBoard
        self._multiplier: list[float] = []  # when training began or went on

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what will run."""
        self._started = time.monotonic()
        if isinstance(pl_module, PreferenceAlignment):
            self._multiplier = pl_module.multiplier.reshape(-1).tolist()
        if not trainer.is_global_zero:
            return
        assert isinstance(pl_module, StepModule)
        lines = _said(opening(trainer, pl_module))
        self._opening = lines if trainer.global_step == 0 else ""  # a resumed run has it already

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Give TensorBoard the opening: a run that ends before its first step leaves no file."""
        if self._opening:
            add_text(trainer, "run", self._opening, step=0)
            self._opening = ""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what came out."""
        if not trainer.is_global_zero:
            return
        assert isinstance(pl_module, StepModule)
        reports = [c.report for c in connected(trainer).callbacks if isinstance(c, BeforeAfter)]
        report = next(iter(reports), None)
        if report is None:  # else it is logged with the report
            log_hparams(trainer, pl_module, None)
        seconds = time.monotonic() - self._started
        lines = _said(closing(trainer, pl_module, report, seconds, self._multiplier))
        add_text(trainer, "outcome", lines, trainer.global_step)


def _said(lines: list[str]) -> str:
    """The lines as one text, once they are said."""
    for line in lines:
        log.info("%s", line)
    return "\n".join(lines)
