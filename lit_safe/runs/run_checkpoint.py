"""Saves checkpoints from which a run continues with bitwise equal results."""

import json
import logging
import os
import pickle
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from lit_safe.errors.message import SettingError
from lit_safe.execution.ranks import failing_together
from lit_safe.protocols.trainer import connected
from lit_safe.runs.background import BackgroundWriter
from lit_safe.runs.best import Best
from lit_safe.runs.checkpoints import BEST, FOLDER, LAST, CheckpointError, CheckpointFiles, write_checkpoint
from lit_safe.runs.end_of_run import ActsAfterTraining, FirstInLine, end_epoch_again

log = logging.getLogger(__name__)


class RunCheckpoint(Checkpoint):
    """Saves ``<run folder>/checkpoints/last.ckpt`` between optimizer steps.

    The file is saved every ``every_n_steps`` steps, at the end of each epoch (before and after the dual step) and at
    the end of training. It is replaced atomically, so a run that is killed always leaves a complete file. If a
    validation follows a step, the step is saved after the validation, because a run resumed before it would not
    validate. The last step of an epoch is saved after the epoch's end has begun, because a run resumed earlier would
    skip the epoch's end.

    The end of training is saved before the final policy is chosen, evaluated and reported. A run resumed from this
    checkpoint does these three things again.

    Args:
        every_n_steps: Number of optimizer steps between two saves. Null saves only at the end of epochs.
        keep_epochs: Also keep the end of each epoch, as ``epoch-<n>.ckpt``.
        keep_best: Also keep ``best.ckpt``. Candidates are the ends of epochs at which the one-sided 95 % bound of the
            cost meets every limit. The best candidate has the highest held-out accuracy (``eval/rewards/accuracies``
            of a validation at that step). If no accuracy is measured, it is the one whose bounds are furthest below
            the limits. ``best.json`` gives the reason.
        keep_last: Also keep the newest checkpoints, as ``step-<n>.ckpt``: this many, the last one included. It is a
            second name of the same file.
        background: Write in a thread while training goes on, from a copy in the memory of the CPU. A save waits for
            the one before, and the end of training for the last one. An error ends the run at the next save.

    Raises:
        ValueError: If ``every_n_steps`` is not positive, or ``keep_last`` is negative.
    """

    def __init__(
        self,
        every_n_steps: int | None = 100,
        keep_epochs: bool = False,
        keep_best: bool = False,
        keep_last: int = 0,
        background: bool = False,
    ) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps must be >= 1 or null, got {every_n_steps}")
        if keep_last < 0:
            raise ValueError(f"keep_last must be >= 0, got {keep_last}")
        self.every_n_steps, self.keep_last = every_n_steps, keep_last
        self.keep_epochs = keep_epochs
        self.best = Best() if keep_best else None
        self.background = background
        self._writer = BackgroundWriter()
        self.only_end = False  # True for a run that was resumed only for its report
        self._after_validation = False
        self._within: int | None = None  # the epoch whose end has begun but is not complete
        self._caller = ""
        self._ended = False
        self._had_ended = False  # in the restored checkpoint

    # -- Lightning's hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Install the checkpoint reader and writer, and add ``FirstInLine`` before all other callbacks.

        Raises:
            ValueError: If ``keep_best`` is set and the run ships an average, or estimates no cost. If ``background`` is
                set and the trainer has another writer of checkpoints.
        """
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = CheckpointFiles()
        if self.background and not isinstance(trainer.strategy.checkpoint_io, CheckpointFiles):
            other = type(trainer.strategy.checkpoint_io).__name__
            raise SettingError(f"checkpoint.background: not with {other} of trainer.plugins: leave out one of the two")
        if stage != "fit":
            return
        self._had_ended = False  # an earlier fit's
        others = [c for c in connected(trainer).callbacks if not (isinstance(c, FirstInLine) and c.owner is self)]
        connected(trainer).callbacks = [FirstInLine(self), *others]
        if self.best is not None:
            self.best.check(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Complete the end of the epoch, if the checkpoint was saved during it."""
        if self._within is None:
            return
        epoch, caller = self._within, self._caller
        self._within, self._caller = None, ""
        end_epoch_again(trainer, pl_module, epoch, caller)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if a save is due. If a validation follows, save after it instead."""
        self._had_ended = False
        due = self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0
        due = due and not _ends_epoch(trainer, batch_idx)
        self._after_validation = due and _validates(trainer, batch_idx)
        if due and not self._after_validation:
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the step whose save was delayed until after this validation."""
        if trainer.sanity_checking:
            return
        if self.best is not None:
            self.best.validated(trainer)
        if self._after_validation:
            self._after_validation = False
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save. Lightning calls checkpoint callbacks last, so this happens after a dual step.

        The last epoch is not saved here, because ``on_train_end`` follows directly and saves it.
        """
        self._within, self._caller = None, ""
        if not _ends_training(trainer):
            self._save(trainer, trainer.current_epoch)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Wait for a checkpoint that is being written. Its own error is logged beside the one that ends the run."""
        try:
            self._writer.wait()
        except Exception as error:
            log.error("%s", error)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Wait for a checkpoint that is being written."""
        self._writer.wait()

    def state_dict(self) -> dict[str, Any]:
        """Whether the checkpoint is at the end of an epoch or of training, and the best iterate so far."""
        best = {} if self.best is None else {"best": self.best.state_dict()}
        return {"within_end_of_epoch": self._within, "at": self._caller, "ended": self._ended, **best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from ``state_dict()``."""
        self._within, self._caller = state_dict.get("within_end_of_epoch"), state_dict.get("at", "")
        self._had_ended = state_dict.get("ended", False)
        if self.best is not None:
            self.best.load_state_dict(state_dict.get("best", {}))

    # -- called by other callbacks

    def save_within_epoch_end(self, trainer: Trainer, caller: Callback) -> None:
        """Save before ``caller`` acts at the epoch's end, which may fail. A resumed run starts with ``caller``."""
        self._within, self._caller = trainer.current_epoch, caller.state_key
        self._save(trainer)

    def written(self, trainer: Trainer) -> None:
        """Wait until the last checkpoint is on the disk. All ranks must call this.

        Raises:
            CheckpointError: If it could not be written, on every rank.
        """
        if self.background:
            with failing_together():
                self._writer.wait()

    def left_open(self, trainer: Trainer) -> bool:
        """Whether the restored run has something to do after its last step.

        The end of a finished run is repeated too: what it logged after its last checkpoint has been cut off.
        """
        after = [c for c in connected(trainer).callbacks if isinstance(c, ActsAfterTraining)]
        return self._within is not None or self._had_ended or any(c.acts_after_training() for c in after)

    def save_end(self, trainer: Trainer) -> None:
        """Save the end of training."""
        if not self._is_saved(trainer):
            self._within, self._caller, self._ended = None, "", True
            self._save(trainer, trainer.current_epoch - 1)
            self._ended = False
            self.written(trainer)
        if self.best is not None and trainer.is_global_zero:
            self.best.say(self._folder(trainer) / BEST)

    def _is_saved(self, trainer: Trainer) -> bool:
        """Whether the run was resumed from its own end and has not been trained since."""
        if not self._had_ended or trainer.ckpt_path is None:
            return False
        return Path(trainer.ckpt_path).resolve() == (self._folder(trainer) / LAST).resolve()

    # -- files

    def _folder(self, trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir) / FOLDER

    def _save(self, trainer: Trainer, ended: int | None = None) -> None:
        """Replace the last checkpoint. ``ended`` is the epoch that ends here, if any."""
        if connected(trainer).fast_dev_run:
            return
        path = self._folder(trainer) / LAST
        new = path.with_suffix(".tmp")
        best = self.best is not None and ended is not None and self.best.improves(trainer, ended)
        record = json.dumps(self.best.record, indent=2, allow_nan=False) if self.best is not None and best else None
        put = partial(self._put, new, path, ended, record, trainer.global_step)
        if self.background:
            self._save_later(trainer, new, put)
            return
        unwritten: CheckpointError | None = None
        try:
            trainer.save_checkpoint(new, weights_only=False)  # on every rank: sharded weights need all ranks
        except CheckpointError as error:  # on the rank that writes; the others wait at the end of this method
            trainer.strategy.barrier("Trainer.save_checkpoint")
            unwritten = error
        with failing_together():
            if unwritten is not None:
                raise unwritten
            if trainer.is_global_zero:
                put()
        trainer.strategy.barrier("last.ckpt")

    def _save_later(self, trainer: Trainer, new: Path, put: Callable[[], None]) -> None:
        """Copy the checkpoint, and write it while training goes on."""
        self.written(trainer)
        files = trainer.strategy.checkpoint_io
        assert isinstance(files, CheckpointFiles)
        with files.holding():
            trainer.save_checkpoint(new, weights_only=False)
        held = files.held()
        if held is not None:

            def work(held: dict[str, Any] = held) -> None:
                write_checkpoint(held, new)
                put()

            self._writer.start(work)

    def _put(self, new: Path, path: Path, ended: int | None, record: str | None, step: int) -> None:
        """Put the complete file ``new`` in the places of the checkpoints that it is. ``record`` is that of the best."""
        _check(new)
        try:
            with new.open("r+b") as file:  # Windows can sync only writable handles
                os.fsync(file.fileno())
            # the other files first: a run killed here repeats this save, a run killed after it would not
            if self.keep_epochs and ended is not None:
                _keep(new, path.with_name(f"epoch-{ended}.ckpt"))
            if record is not None:
                _keep(new, path.with_name(BEST))
                path.with_name(BEST).with_suffix(".json").write_text(record + "\n", encoding="utf-8")
            if self.keep_last:
                _keep(new, path.with_name(f"step-{step}.ckpt"))
            os.replace(new, path)
            if self.keep_last:
                _leave_newest(path.parent, self.keep_last)
        except OSError as error:
            raise CheckpointError(f"cannot write the checkpoint {path}: {error.strerror or error}") from error


def _keep(file: Path, name: Path) -> None:
    """Hard-link ``file`` as ``name``, atomically. Copy it if the file system has no hard links."""
    beside = name.with_suffix(".tmp")
    beside.unlink(missing_ok=True)
    try:
        os.link(file, beside)
    except OSError:
        shutil.copyfile(file, beside)
        with beside.open("r+b") as copy:
            os.fsync(copy.fileno())
    os.replace(beside, name)


def _leave_newest(folder: Path, count: int) -> None:
    """Delete all but the newest files ``step-<n>.ckpt``. A run that went back to an older step has newer, smaller n."""
    found = sorted(folder.glob("step-*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    for path in found[:-count]:
        path.unlink(missing_ok=True)


def _ends_epoch(trainer: Trainer, batch_idx: int) -> bool:
    last_batch = trainer.is_last_batch or batch_idx + 1 >= trainer.num_training_batches
    return last_batch or _stops_early(trainer) or 0 <= trainer.max_steps <= trainer.global_step


def _ends_training(trainer: Trainer) -> bool:
    """Whether ``on_train_end`` follows this end of an epoch. If training continues, the next end is saved."""
    epochs, steps = trainer.max_epochs, trainer.max_steps
    last_epoch = epochs is not None and 0 <= epochs <= trainer.current_epoch + 1
    return last_epoch or _stops_early(trainer) or 0 <= steps <= trainer.global_step


def _stops_early(trainer: Trainer) -> bool:
    """Whether a callback asked for the end of training, and ``min_epochs`` and ``min_steps`` allow it."""
    return trainer.should_stop and trainer.fit_loop._can_stop_early


def _validates(trainer: Trainer, batch_idx: int) -> bool:
    """Whether a validation follows this step, which does not end an epoch."""
    epochs = trainer.check_val_every_n_epoch
    if not trainer.enable_validation or trainer.val_check_batch is None:
        return False  # None: validation by wall time, which a resumed run does not reproduce
    if trainer.num_val_batches and not sum(trainer.num_val_batches):
        return False  # Lightning passes over a validation without batches
    if epochs is not None and (trainer.current_epoch + 1) % epochs:
        return False
    step = trainer.fit_loop.total_batch_idx if epochs is None else batch_idx
    return (step + 1) % trainer.val_check_batch == 0


def _check(path: Path) -> None:
    """Refuse a file that could not be loaded without running code from it."""
    try:
        torch.load(path, weights_only=True, mmap=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise TypeError(f"a checkpoint may contain only tensors and plain values: {error}") from error
