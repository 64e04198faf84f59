"""What TensorBoard shows of a run beside its curves: texts, the report's picture, a row in the table of runs."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import indent

from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter

CODE = " " * 4  # Markdown shows a text so indented as it stands


def writers(trainer: Trainer) -> Iterator[SummaryWriter]:
    """Those of the trainer's TensorBoard loggers, on the first rank."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            yield logger.experiment


def add_text(trainer: Trainer, tag: str, text: str, step: int) -> None:
    """A text as it stands, at an optimizer step."""
    for writer in writers(trainer):
        writer.add_text(tag, indent(text, CODE), step)


def add_picture(trainer: Trainer, tag: str, path: Path) -> None:
    """A PNG file, at this optimizer step."""
    from matplotlib.image import imread  # no command without a report needs it

    for writer in writers(trainer):
        writer.add_image(tag, imread(path)[..., :3], trainer.global_step, dataformats="HWC")


def add_hparams(trainer: Trainer, settings: Mapping[str, str | float], measured: Mapping[str, float]) -> None:
    """The run's row in TensorBoard's table of runs; what is not known is left out of it."""
    known = {name: value for name, value in measured.items() if not math.isnan(value)}
    for writer in writers(trainer):
        writer.add_hparams(dict(settings), known, run_name=".")
