"""One folder for each run: begun without ever overwriting an earlier one, continued exactly from its checkpoint."""

import os
import shutil
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn

from lit_safe.callbacks.move_aside import CONFIG, MARKS, move_aside
from lit_safe.callbacks.signals import Stopped
from lit_safe.config_files import OF_FIT
from lit_safe.loggers.files import TEMPORARY
from lit_safe.loggers.run_logger import Position, RunLogger
from lit_safe.run_lock import LOCK, RunFolderError, RunLock, check_writable

FOLDERS = ("checkpoints", "tensorboard")  # of a run, in its folder


class RunFolder(Callback):
    """Makes ``trainer.default_root_dir`` the folder of this run, locks it, and hands it to the loggers.

    ``fit`` without a checkpoint, or with one from elsewhere, moves a folder of an earlier run aside (``runs/x`` to
    ``runs/x.1``) and begins a fresh one. ``fit`` from a checkpoint inside the folder continues it in place: what the
    loggers wrote after that checkpoint is cut off, so no step stands twice and none is missing. ``validate``, ``test``
    and ``predict`` write into a sub-folder of their name.

    A folder in which another process runs is refused, and so is one that cannot be written.
    """

    def __init__(self) -> None:
        self._loggers: list[RunLogger] = []
        self._restored: Position | None = None
        self._begun = False
        self._fresh = False  # whether this process began what is in the folder
        self._lock: RunLock | None = None

    def enter(self, trainer: Trainer, stage: str, ckpt_path: str | None = None) -> None:
        """Lock the folder of a command. Does nothing if this callback has locked it already.

        The command line calls this before it reads data or a model, ``setup`` calls it for a Trainer without one.

        Args:
            trainer: Its ``default_root_dir`` is the run folder.
            stage: ``fit``, ``validate``, ``test`` or ``predict``.
            ckpt_path: What the command continues from.

        Raises:
            RunFolderError: If the folder is unfit, cannot be written, or belongs to a live process.
            ValueError: If it holds the working directory.
        """
        folder = _folder(trainer, stage)
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger):
                logger.place(folder)
        trial = trainer.fast_dev_run  # type: ignore[attr-defined]  # leaves nothing behind
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
        """Enter the folder, and open the loggers of a command other than ``fit``.

        Raises:
            RunFolderError: As ``enter``, on every rank.
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
        """Refuse to go on without a callback that the checkpoint has a state of.

        Raises:
            ValueError: Naming them; Lightning itself only warns, and their state would be lost.
        """
        missing = sorted(set(checkpoint["callbacks"]) - {callback.state_key for callback in trainer.callbacks})  # type: ignore[attr-defined]
        if trainer.state.fn == "fit" and missing:
            raise ValueError(f"the checkpoint has the state of callbacks that this run lacks: {', '.join(missing)}")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember where the loggers were."""
        self._restored = state_dict["position"]

    def state_dict(self) -> dict[str, Any]:
        """Where the loggers are, with everything before it on disk: called whenever a checkpoint is saved."""
        return {"position": {name: n for logger in self._loggers for name, n in logger.position().items()}}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin or continue the folder."""
        # strategies that restore later (FSDP) do not know of the checkpoint yet
        if not trainer.strategy.restore_checkpoint_after_setup:
            self._begin(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin or continue the folder, where that had to wait."""
        if not self._begun:
            self._begin(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the folder free."""
        self.leave("success")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the folder free. A run that was stopped before it trained leaves nothing in it."""
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
        """Close the loggers, then give the folder free."""
        self._close(status)
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _begin(self, trainer: Trainer) -> None:
        self._begun = True
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        folder = _folder(trainer, "fit")
        resumed = _lies_in(folder, trainer.ckpt_path)
        if resumed and self._restored is None:
            raise ValueError(
                f"{trainer.ckpt_path} does not say where its metrics ended: RunFolder was not in callbacks"
            )
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
        earlier, self._lock = self._lock, RunLock(folder)  # the lock's file has moved along
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

    It holds what makes the run, and not the checkpoint from which a process went on. A run continued under another
    configuration keeps the earlier one as ``config.until-step-<n>.yaml``.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing: an earlier run may still be in the folder."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the configuration, on the first rank."""
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
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
    """Where a command writes.

    Raises:
        RunFolderError: If the name means something else to Lightning than to us.
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
            f"trainer.default_root_dir is {name!r}, which holds the working directory: a run needs a folder of its "
            "own, e.g. runs/first"
        )
    return folder


def _lies_in(folder: Path, path: str | os.PathLike[str] | None) -> bool:
    """Whether a checkpoint, or what else a path names, is of the run in ``folder``."""
    return path is not None and Path(path).resolve().is_relative_to(folder.resolve())


def _check_folders(folder: Path) -> None:
    for name in FOLDERS:
        if (folder / name).exists():
            check_writable(folder / name)


def _remove_temporary(folder: Path) -> None:
    """Remove what a killed run was about to replace its files by."""
    for parent in (folder, folder / FOLDERS[0]):
        for path in parent.glob(f"*{TEMPORARY}"):
            path.unlink()


def _close_experiments(trainer: Trainer, folder: Path) -> None:
    """Let Lightning's own loggers in the folder begin anew: they open files before an earlier run could move aside."""
    for logger in trainer.loggers:
        if not isinstance(logger, CSVLogger | TensorBoardLogger) or isinstance(logger, RunLogger):
            continue
        if _lies_in(folder, logger.save_dir):
            if isinstance(logger, TensorBoardLogger) and logger._experiment is not None:
                logger._experiment.close()
            logger._experiment = None


def _check_callbacks(trainer: Trainer) -> None:
    """Refuse a callback that would overwrite the checkpoint a run continues from."""
    ours = (Path(trainer.default_root_dir) / FOLDERS[0]).resolve()
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if not isinstance(callback, ModelCheckpoint) or not callback.save_last:
            continue
        if callback.dirpath is None or Path(callback.dirpath).resolve() == ours:
            raise ValueError(
                "ModelCheckpoint(save_last) would overwrite checkpoints/last.ckpt, from which the run continues: leave "
                "save_last out"
            )
