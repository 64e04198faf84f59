"""TensorBoard curves of a run. A resumed run logs every step exactly once."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.utils.tensorboard import SummaryWriter

from lit_safe.runs.loggers.event_files import PREFIX, open_after
from lit_safe.runs.loggers.files import ELSEWHERE, inside, named, sync
from lit_safe.runs.loggers.run_logger import Position

FOLDER = "tensorboard"


class TensorBoardRun(TensorBoardLogger):
    """Writes event files directly into ``<run folder>/tensorboard``, without a version folder or ``hp_metric``.

    Event files are only appended to, and a resumed run starts a new file. A position is therefore the length of each
    file in bytes, and cutting back truncates the files.
    """

    def __init__(self) -> None:
        super().__init__(save_dir="", name="", version="", default_hp_metric=False)
        self._folder: Path | None = None
        self._is_open = False
        self._synced: Position = {}

    @property
    def save_dir(self) -> str:
        """The run folder. Callbacks that ask the first logger for a folder write into it."""
        return "" if self._folder is None else str(self._folder)

    @property
    def log_dir(self) -> str:
        """The run folder. Profilers without their own folder write into it."""
        return self.save_dir

    @property
    def root_dir(self) -> str:
        """The run folder."""
        return self.save_dir

    @property
    @rank_zero_experiment
    def experiment(self) -> SummaryWriter:
        """The ``SummaryWriter``, created at the first entry.

        Raises:
            AttributeError: Before ``open``. Lightning checks every logger for ``experiment`` (by ``hasattr``) before a
                callback can move an earlier run.
        """
        if not self._is_open:
            raise AttributeError("no folder yet: put lit_safe.runs.run_folder.RunFolder in callbacks")
        if self._experiment is None:
            with named(self._events):
                self._experiment = open_after(self._events, self._files())
        return self._experiment

    def place(self, folder: Path) -> None:
        """Use ``folder`` as the run folder. Writes nothing."""
        self._folder = folder

    def open(self, folder: Path) -> None:
        """Start a new event file in ``folder/tensorboard``."""
        self._close()
        self._folder, self._is_open, self._synced = folder, True, {}

    def position(self) -> Position:
        """The length of every event file in bytes, after syncing it to disk."""
        self.save()
        position = {self._key(path): path.stat().st_size for path in self._files()}
        for name, size in position.items():
            if self._synced.get(name) != size:
                sync(self._run / name)
        self._synced = position
        return dict(position)

    def cut_back(self, position: Position) -> None:
        """Truncate event files to their lengths in ``position``. Delete files that are not in ``position``.

        Raises:
            ValueError: If a file is missing or shorter, or a name is outside the folder of the event files.
        """
        sizes = {name: size for name, size in position.items() if Path(name).parts[:1] == (FOLDER,)}
        paths = {name: inside(self._events, self._run / name) for name in sizes}
        for name, path in paths.items():
            if not path.exists() or path.stat().st_size < sizes[name]:
                raise ValueError(
                    f"{path} is missing or shorter than the {sizes[name]} bytes it had at the checkpoint. {ELSEWHERE}"
                )
        for name, path in paths.items():
            os.truncate(path, sizes[name])
        for path in self._files():
            if self._key(path) not in sizes:
                path.unlink()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add one point to each curve."""
        with named(self._events):  # Lightning's own method would report a full disk as 'currently not supported'
            for name, value in metrics.items():
                self.experiment.add_scalar(name, float(value), step)

    @rank_zero_only
    def save(self) -> None:
        """Flush. Hyperparameters are in the run's ``config.yaml``, not in a TensorBoard file."""
        if self._experiment is not None:
            with named(self._events):
                self._experiment.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the event file. A later entry starts a new file."""
        self._close()

    def _close(self) -> None:
        if self._experiment is not None:
            self._experiment.close()
            self._experiment = None

    @property
    def _run(self) -> Path:
        assert self._folder is not None
        return self._folder

    @property
    def _events(self) -> Path:
        return self._run / FOLDER

    def _key(self, path: Path) -> str:
        return path.relative_to(self._run).as_posix()

    def _files(self) -> list[Path]:
        return sorted(self._events.rglob(f"{PREFIX}*"))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_experiment": None}
