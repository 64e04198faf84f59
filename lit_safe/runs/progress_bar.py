"""Progress of training and evaluation that reads well on a terminal and in a log file alike."""

import math
from collections.abc import Mapping
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from torch import Tensor

from lit_safe.execution.progress import Tracker

NOTES = (
    ("train/loss", "loss {:.4g}"),
    ("train/rewards/margins", "margin {:.3g}"),
    ("train/perf/rows_per_s", "{:.3g} rows/s"),
    ("train/perf/tokens_per_s", "{:.0f} tokens/s"),
)


class Progress(ProgressBar):
    """A bar on a terminal, otherwise a log line now and then: step, of how many, time left, and the latest metrics.

    Args:
        seconds: Between two log lines where there is no terminal.
    """

    def __init__(self, seconds: float = 30.0) -> None:
        super().__init__()
        self.seconds = seconds
        self._enabled = True
        self._training: Tracker | None = None
        self._evaluation: Tracker | None = None

    def enable(self) -> None:
        """Show."""
        self._enabled = True

    def disable(self) -> None:
        """Show nothing: called on every rank but the first."""
        self._enabled = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin, at the step that training starts from, after what other callbacks do before training."""
        if self._training is None:
            self._training = self._tracker("step", trainer.estimated_stepping_batches, trainer.global_step, last=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show the step, with the metrics last logged."""
        if self._training is not None:
            self._training.update(trainer.global_step, note(trainer.callback_metrics))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the bar away."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the bars away, so that the error stands alone."""
        self._close()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a bar of its own."""
        batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        self._evaluation = self._tracker("validation batch", sum(batches))

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Show the batch."""
        self._evaluated(batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take its bar away."""
        self._close_evaluation()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a bar of its own."""
        self._evaluation = self._tracker("test batch", sum(trainer.num_test_batches))

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Show the batch."""
        self._evaluated(batch_idx)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take its bar away."""
        self._close_evaluation()

    def _tracker(self, description: str, total: float, done: int = 0, *, last: bool = False) -> Tracker | None:
        if not self._enabled:
            return None
        return Tracker(description, int(total) if math.isfinite(total) else None, done, self.seconds, last)

    def _evaluated(self, batch_idx: int) -> None:
        if self._evaluation is not None:
            self._evaluation.update(batch_idx + 1)

    def _close_evaluation(self) -> None:
        if self._evaluation is not None:
            self._evaluation.close()
            self._evaluation = None

    def _close(self) -> None:
        self._close_evaluation()
        if self._training is not None:
            self._training.close()
            self._training = None


def note(metrics: Mapping[str, Tensor]) -> str:
    """The metrics last logged that say how training goes, in one line."""
    return ", ".join(form.format(float(metrics[name])) for name, form in NOTES if name in metrics)
