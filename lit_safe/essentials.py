"""Adds the callbacks and loggers that every run needs: folder, checkpoints, announcement, signals, logs."""

from collections.abc import Iterable, Sequence
from typing import Any

from lightning import Callback
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import Logger

from lit_safe.runs.loggers.metrics_csv import MetricsCSV
from lit_safe.runs.loggers.tensorboard import TensorBoardRun
from lit_safe.runs.prediction_file import PredictionFile
from lit_safe.runs.progress_bar import Progress
from lit_safe.runs.run_folder import RunFolder
from lit_safe.runs.signals import StopOnSignal
from lit_safe.screen.announce import Announce


def with_essentials(config: dict[str, Any], configured: Iterable[Callback]) -> dict[str, Any]:
    """Add to a trainer's arguments the callbacks and loggers that every run has.

    The user's callbacks and loggers are kept. One of the same class replaces ours.

    Args:
        config: Arguments of ``Trainer``. ``logger: false`` and ``enable_progress_bar: false`` are kept.
        configured: Callbacks that have their own group of options.

    Returns:
        The arguments with complete lists.

    Raises:
        ValueError: If ``enable_checkpointing`` is false.
    """
    if config.get("enable_checkpointing") is False:
        raise ValueError("a run needs its checkpoints: remove trainer.enable_checkpointing")
    users: list[Callback] = _listed(config.get("callbacks"))
    shows = config.get("enable_progress_bar") is not False
    if not shows:
        users = [callback for callback in users if not isinstance(callback, Progress)]
    kept = [callback for callback in configured if shows or not isinstance(callback, Progress)]
    # order: progress bar first, so it ends before other callbacks print; checkpoints last
    bars = [callback for callback in kept if isinstance(callback, Progress)]
    if any(isinstance(callback, ProgressBar) for callback in users):
        bars = []
    others = [callback for callback in kept if not isinstance(callback, Progress)]
    first = _missing([RunFolder(), *bars, Announce()], users)
    last = _missing([PredictionFile(), *others, StopOnSignal()], users)
    return {**config, "callbacks": [*first, *users, *last], "logger": _loggers(config.get("logger"))}


def _loggers(typed: Any) -> Any:
    if typed is False:
        return False
    users: list[Logger] = [] if typed is True else _listed(typed)
    return [*_missing([TensorBoardRun(), MetricsCSV()], users), *users]


def _missing(ours: Sequence[Any], users: Sequence[Any]) -> list[Any]:
    return [one for one in ours if not any(isinstance(other, type(one)) for other in users)]


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
