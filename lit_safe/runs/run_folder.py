"""Manages the run folder: never overwrites an earlier run, and continues a run exactly from its checkpoint."""

import os
import shutil
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn

from lit_safe.config_files import OF_FIT
from lit_safe.execution.ranks import failing_together
from lit_safe.protocols.trainer import connected
from lit_safe.runs.loggers.files import TEMPORARY
from lit_safe.runs.loggers.run_logger import Position, RunLogger
from lit_safe.runs.move_aside import CONFIG, MARKS, move_aside
from lit_safe.runs.run_lock import LOCK, RunFolderError, RunLock, check_writable
from lit_safe.runs.signals import Stopped

FOLDERS = ("checkpoints", "tensorboard")  # subfolders of a run folder


class RunFolder(Callback):
    """Uses ``trainer.default_root_dir`` as the run folder: locks it and opens the loggers in it.

    ``fit`` without a checkpoint, or with one from another folder, starts a new run. It first renames the folder of an
    earlier run (``runs/x`` to ``runs/x.1``). ``fit`` from a checkpoint inside the folder continues that run. Log
    entries written after the checkpoint are removed, so every step is logged exactly once. ``validate``, ``test`` and
    ``predict`` write into a subfolder with their name.

    A folder that another process uses, or that cannot be written, is refused.
    """

    def __init__(self) -> None:
        self._loggers: list[RunLogger] = []
        self._restored: Position | None = None
        self._begun = False
        self._fresh = False  # whether this process started the run in the folder
        self._lock: RunLock | None = None

    def enter(self, trainer: Trainer, stage: str, ckpt_path: str | None = None) -> None:
        """Lock the folder of a command. Does nothing if this callback has locked it already.

        The command line calls this before it reads data or a model. Without the command line, ``setup`` calls it.

        Args:
            trainer: Its ``default_root_dir`` is the run folder.
            stage: ``fit``, ``validate``, ``test`` or ``predict``.
            ckpt_path: The checkpoint that the command loads.

        Raises:
            RunFolderError: If the folder is not local, cannot be written, or is used by a live process.
            ValueError: If the folder contains the working directory.
        """
        folder = _folder(trainer, stage)
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger):
                logger.place(folder)
        trial = connected(trainer).fast_dev_run  # writes nothing
        if self._lock is not None or trial or not trainer.is_global_zero:
            return
        lock = RunLock(folder)
        lock.acquire()
        try:
            if _lies_in(folder, ckpt_path):
                _check_folders(folder)
        except RunFolderError:
            lock.release()
            raise
        self._lock = lock

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lock the folder. For commands other than ``fit``, also open the loggers.

        Raises:
            RunFolderError: As in ``enter``, on every rank.
        """
        self._begun = self._fresh = False
        self._restored = None
        problem = None
        try:
            self.enter(trainer, stage)
        except RunFolderError as error:
            problem = str(error)
        problem = trainer.strategy.broadcast(problem)
        if problem is not None:
            raise RunFolderError(problem)
        if stage == "fit":
            _check_callbacks(trainer)
        else:
            self._open(trainer, _folder(trainer, stage))

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Check that the run has all callbacks whose state is in the checkpoint.

        Lightning only warns about missing callbacks, and their state would be lost.

        Raises:
            ValueError: If callbacks are missing. The message names them.
        """
        missing = sorted(
            set(checkpoint["callbacks"]) - {callback.state_key for callback in connected(trainer).callbacks}
        )
        if trainer.state.fn == "fit" and missing:
            raise ValueError(f"the checkpoint has state of callbacks that this run does not have: {', '.join(missing)}")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the loggers' positions."""
        self._restored = state_dict["position"]

    def state_dict(self) -> dict[str, Any]:
        """Flush the loggers and return their positions. Called whenever a checkpoint is saved."""
        return {"position": {name: n for logger in self._loggers for name, n in logger.position().items()}}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start a new run in the folder, or continue the run in it."""
        # strategies that restore later (FSDP) have not read the checkpoint yet
        if not trainer.strategy.restore_checkpoint_after_setup:
            self._begin(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do what ``on_fit_start`` does, for strategies that restore the checkpoint later."""
        if not self._begun:
            self._begin(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Release the folder."""
        self.leave("success")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Release the folder. If the run stopped before training, remove what it created."""
        self._close("failed")
        folder = Path(trainer.default_root_dir)
        checkpoints = any((folder / FOLDERS[0]).glob("*.ckpt"))
        if isinstance(exception, Stopped) and self._fresh and self._lock is not None and not checkpoints:
            for path in map(folder.joinpath, MARKS):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        self.leave("failed")

    def _close(self, status: str) -> None:
        for logger in self._loggers:
            logger.finalize(status)

    def leave(self, status: str) -> None:
        """Close the loggers, then release the folder."""
        self._close(status)
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _begin(self, trainer: Trainer) -> None:
        self._begun = True
        if connected(trainer).fast_dev_run:
            return
        folder = _folder(trainer, "fit")
        resumed = _lies_in(folder, trainer.ckpt_path)
        if resumed and self._restored is None:
            raise ValueError(
                f"{trainer.ckpt_path} does not say where its metrics ended: RunFolder was not in callbacks"
            )
        with failing_together():
            if trainer.is_global_zero:
                _remove_temporary(folder)
                if not resumed:
                    _close_experiments(trainer, folder)
                    self._move_aside(folder)
                    self._fresh = True
            self._open(trainer, folder)
            if resumed:
                assert self._restored is not None
                for logger in self._loggers:
                    logger.cut_back(self._restored)
        trainer.strategy.barrier("run folder")

    def _move_aside(self, folder: Path) -> None:
        aside = move_aside(folder)
        if aside is None or self._lock is None or (folder / LOCK).exists():
            return
        earlier, self._lock = self._lock, RunLock(folder)  # the lock file was moved with the folder
        earlier.move(aside)
        try:
            self._lock.acquire()
        finally:
            earlier.release()

    def _open(self, trainer: Trainer, folder: Path) -> None:
        if not trainer.is_global_zero:
            return
        self._loggers = [logger for logger in trainer.loggers if isinstance(logger, RunLogger)]
        for logger in self._loggers:
            logger.open(folder)


class SaveConfig(SaveConfigCallback):
    """Writes the resolved configuration of a fit to ``<run folder>/config.yaml``.

    The file contains the settings of the run, without the checkpoint that a process resumed from. If a run is continued
    with another configuration, the earlier one is kept as ``config.until-step-<n>.yaml``.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Do nothing, because an earlier run may still be in the folder."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the configuration, on the first rank."""
        if not trainer.is_global_zero or connected(trainer).fast_dev_run:
            return
        path = Path(trainer.default_root_dir) / CONFIG
        config = self.config.clone()
        for name in OF_FIT:
            config.pop(name, None)
        text = self.parser.dump(config, skip_unset=False, skip_validation=True)
        if path.exists() and path.read_text(encoding="utf-8") != text:
            os.replace(path, path.with_name(f"config.until-step-{trainer.global_step}.yaml"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _folder(trainer: Trainer, stage: str) -> Path:
    """The folder that a command writes to.

    Raises:
        RunFolderError: If the name is not a local path (Lightning would treat it as a URL).
        ValueError: If a fit would move the working directory.
    """
    name = str(trainer.default_root_dir)
    if "::" in name or "://" in name:
        raise RunFolderError(
            f"trainer.default_root_dir is {name!r}: a run needs a local folder, without '::' in its name"
        )
    folder = Path(name)
    if stage != "fit":
        return folder / TrainerFn(stage).value
    if Path.cwd().is_relative_to(folder.resolve()):
        raise ValueError(
            f"trainer.default_root_dir is {name!r}, which contains the working directory: a run needs its own "
            "folder, e.g. runs/first"
        )
    return folder


def _lies_in(folder: Path, path: str | os.PathLike[str] | None) -> bool:
    """Whether ``path`` (of a checkpoint, for example) is inside ``folder``."""
    return path is not None and Path(path).resolve().is_relative_to(folder.resolve())


def _check_folders(folder: Path) -> None:
    for name in FOLDERS:
        if (folder / name).exists():
            check_writable(folder / name)


def _remove_temporary(folder: Path) -> None:
    """Remove temporary files that a killed run left."""
    for parent in (folder, folder / FOLDERS[0]):
        for path in parent.glob(f"*{TEMPORARY}"):
            path.unlink()


def _close_experiments(trainer: Trainer, folder: Path) -> None:
    """Reopen Lightning's own loggers in the folder: they opened their files before an earlier run was moved."""
    for logger in trainer.loggers:
        if not isinstance(logger, CSVLogger | TensorBoardLogger) or isinstance(logger, RunLogger):
            continue
        if _lies_in(folder, logger.save_dir):
            if isinstance(logger, TensorBoardLogger) and logger._experiment is not None:
                logger._experiment.close()
            logger._experiment = None


def _check_callbacks(trainer: Trainer) -> None:
    """Refuse callbacks that would overwrite the checkpoint from which a run continues."""
    ours = (Path(trainer.default_root_dir) / FOLDERS[0]).resolve()
    for callback in connected(trainer).callbacks:
        if not isinstance(callback, ModelCheckpoint) or not callback.save_last:
            continue
        if callback.dirpath is None or Path(callback.dirpath).resolve() == ours:
            raise ValueError(
                "ModelCheckpoint(save_last) would overwrite checkpoints/last.ckpt, from which the run continues: leave "
                "save_last out"
            )
