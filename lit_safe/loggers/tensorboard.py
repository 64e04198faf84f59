"""TensorBoard curves of a run, continued without a step twice or missing."""

import os
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.utils.tensorboard import SummaryWriter

from lit_safe.loggers.run_logger import Position

FOLDER = "tensorboard"


class TensorBoardRun(TensorBoardLogger):
    """Writes event files straight into ``<run folder>/tensorboard``, with no version folder and no ``hp_metric``.

    Event files are only ever appended to, and a resumed run begins a new one; so a position is the length of each file
    in bytes, and cutting back is truncating.
    """

    def __init__(self) -> None:
        super().__init__(save_dir="", name="", version="", default_hp_metric=False)

    @property
    def log_dir(self) -> str:
        """Where the event files lie."""
        return self._root_dir

    @property
    def root_dir(self) -> str:
        """Where the event files lie."""
        return self._root_dir

    @property
    @rank_zero_experiment
    def experiment(self) -> SummaryWriter:
        """The ``SummaryWriter``, created at the first record.

        Raises:
            AttributeError: Before ``open``. Lightning asks every logger for its ``experiment`` (by ``hasattr``) before
                any callback could have moved an earlier run aside.
        """
        if not self._root_dir:
            raise AttributeError("no folder yet: put lit_safe.callbacks.run_folder.RunFolder in callbacks")
        return super().experiment

    def open(self, folder: Path) -> None:
        """Write to ``folder/tensorboard``, in a new event file."""
        self._close()
        self._root_dir = str(folder / FOLDER)

    def position(self) -> Position:
        """Bytes of every event file, flushed."""
        self.save()
        return {str(path.relative_to(self._run)): path.stat().st_size for path in self._files()}

    def cut_back(self, position: Position) -> None:
        """Truncate event files to their bytes in ``position``; those it does not name go.

        Raises:
            ValueError: If a file is missing or shorter.
        """
        for name, size in position.items():
            if not name.startswith(FOLDER):
                continue
            path = self._run / name
            if not path.exists() or path.stat().st_size < size:
                raise ValueError(f"{path} is missing or shorter than the {size} bytes it had at the checkpoint")
            os.truncate(path, size)
        for path in self._files():
            if str(path.relative_to(self._run)) not in position:
                path.unlink()

    @rank_zero_only
    def save(self) -> None:
        """Flush. Hyper-parameters are in the run's ``config.yaml``, not in a file of TensorBoard's."""
        if self._experiment is not None:
            self._experiment.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the event file; a later record begins another."""
        self._close()

    def _close(self) -> None:
        if self._experiment is not None:
            self._experiment.close()
            self._experiment = None

    @property
    def _run(self) -> Path:
        return Path(self._root_dir).parent

    def _files(self) -> list[Path]:
        return sorted(Path(self._root_dir).rglob("events.out.tfevents.*"))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_experiment": None}
