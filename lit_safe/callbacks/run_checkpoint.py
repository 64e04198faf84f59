"""Checkpoints from which a run continues to the bit."""

import json
import logging
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from lit_safe.callbacks.best import Best
from lit_safe.callbacks.end_of_run import ActsAfterTraining, FirstInLine, end_epoch_again
from lit_safe.checkpoints import BEST, FOLDER, LAST, CheckpointError, CheckpointFiles

log = logging.getLogger(__name__)


class RunCheckpoint(Checkpoint):
    """Keeps ``<run folder>/checkpoints/last.ckpt``, saved at boundaries of optimizer steps.

    It is replaced atomically every ``every_n_steps``, at the end of each epoch (before the dual step and after it) and
    at the end of training; a kill at any moment leaves a whole file. Where a validation is due after a step, the step
    is saved after it: a run resumed from before would not validate. An epoch's last step is saved once the epoch's end
    has begun: a run resumed from before that would skip what happens there.

    The end of training is saved before anything else is done with what was trained: the policy that ships, its
    evaluation and its report are made again by a run that is resumed from there.

    Args:
        every_n_steps: Save after each so many optimizer steps; null saves at epoch ends alone.
        keep_epochs: Keep the end of each epoch too, as ``epoch-<n>.ckpt``.
        keep_best: Keep ``best.ckpt`` too: of the ends of epochs whose cost estimate keeps every limit by its one-sided
            95 % bound, the one with the best held-out accuracy (``eval/rewards/accuracies`` of a validation at that
            step; where none is measured, the one whose bounds lie furthest below the limits). ``best.json`` says why.

    Raises:
        ValueError: If ``every_n_steps`` is not positive.
    """

    def __init__(self, every_n_steps: int | None = 100, keep_epochs: bool = False, keep_best: bool = False) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps must be >= 1 or null, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self.keep_epochs = keep_epochs
        self.best = Best() if keep_best else None
        self.only_end = False  # a run that was resumed for its report takes no step
        self._after_validation = False
        self._within: int | None = None  # the epoch whose end has begun and is not over
        self._caller = ""
        self._ended = False

    # -- Lightning's hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take over the files of checkpoints, and come first where all depends on it.

        Raises:
            ValueError: If the best iterate is to be kept and no iterate ships.
        """
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = CheckpointFiles()
        if stage != "fit":
            return
        others = [c for c in trainer.callbacks if not (isinstance(c, FirstInLine) and c.owner is self)]  # type: ignore[attr-defined]
        trainer.callbacks = [FirstInLine(self), *others]  # type: ignore[attr-defined]
        if self.best is not None:
            self.best.check(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the epoch whose end the checkpoint was saved in."""
        if self._within is None:
            return
        epoch, caller = self._within, self._caller
        self._within, self._caller = None, ""
        end_epoch_again(trainer, pl_module, epoch, caller)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save the step if one is due, or leave it to the end of the validation that follows."""
        due = self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0
        due = due and not _ends_epoch(trainer, batch_idx)
        self._after_validation = due and _validates(trainer, batch_idx)
        if due and not self._after_validation:
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the step that waited for this validation."""
        if trainer.sanity_checking:
            return
        if self.best is not None:
            self.best.validated(trainer)
        if self._after_validation:
            self._after_validation = False
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save. Lightning calls checkpoint callbacks last, so after a dual step.

        The last epoch is left to the end of training, which is saved at once after it.
        """
        self._within, self._caller = None, ""
        if not _ends_training(trainer):
            self._save(trainer, trainer.current_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Which end the checkpoint lies at, and the best iterate so far."""
        best = {} if self.best is None else {"best": self.best.state_dict()}
        return {"within_end_of_epoch": self._within, "at": self._caller, "ended": self._ended, **best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from ``state_dict()``."""
        self._within, self._caller = state_dict.get("within_end_of_epoch"), state_dict.get("at", "")
        if self.best is not None:
            self.best.load_state_dict(state_dict.get("best", {}))

    # -- what other callbacks ask for

    def save_within_epoch_end(self, trainer: Trainer, caller: Callback) -> None:
        """Save the epoch's last step, as ``caller`` is about to do what may fail: a resumed run begins with it."""
        self._within, self._caller = trainer.current_epoch, caller.state_key
        self._save(trainer)

    def left_open(self, trainer: Trainer) -> bool:
        """Whether the restored checkpoint was saved before something that its run still had to do."""
        after = [c for c in trainer.callbacks if isinstance(c, ActsAfterTraining)]  # type: ignore[attr-defined]
        return self._within is not None or any(c.acts_after_training() for c in after)

    def save_end(self, trainer: Trainer) -> None:
        """Save the end of training."""
        self._within, self._caller, self._ended = None, "", True
        self._save(trainer, trainer.current_epoch - 1)
        self._ended = False
        if self.best is not None and trainer.is_global_zero:
            self.best.say(self._folder(trainer) / BEST)

    # -- files

    def _folder(self, trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir) / FOLDER

    def _save(self, trainer: Trainer, ended: int | None = None) -> None:
        """Replace the last checkpoint; ``ended`` is the epoch that this is the end of."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        path = self._folder(trainer) / LAST
        new = path.with_suffix(".tmp")
        best = self.best is not None and ended is not None and self.best.improves(trainer, ended)
        trainer.save_checkpoint(new, weights_only=False)  # on every rank: gathering sharded weights takes all of them
        if trainer.is_global_zero:
            _check(new)
            try:
                with new.open("r+b") as file:  # Windows syncs no handle that cannot write
                    os.fsync(file.fileno())
                # the others first: a run that is killed here does this save again, one killed after would not
                if self.keep_epochs and ended is not None:
                    _keep(new, path.with_name(f"epoch-{ended}.ckpt"))
                if best and self.best is not None:
                    _keep(new, path.with_name(BEST))
                    record = json.dumps(self.best.record, indent=2, allow_nan=False)
                    path.with_name(BEST).with_suffix(".json").write_text(record + "\n", encoding="utf-8")
                os.replace(new, path)
            except OSError as error:
                raise CheckpointError(f"cannot write the checkpoint {path}: {error.strerror or error}") from error
        trainer.strategy.barrier("last.ckpt")


def _keep(file: Path, name: Path) -> None:
    """Give ``file`` another ``name`` too, atomically; a copy where the disk knows no two names of one file."""
    beside = name.with_suffix(".tmp")
    beside.unlink(missing_ok=True)
    try:
        os.link(file, beside)
    except OSError:
        shutil.copyfile(file, beside)
        with beside.open("r+b") as copy:
            os.fsync(copy.fileno())
    os.replace(beside, name)


def _ends_epoch(trainer: Trainer, batch_idx: int) -> bool:
    last_batch = trainer.is_last_batch or batch_idx + 1 >= trainer.num_training_batches
    return last_batch or trainer.should_stop or 0 <= trainer.max_steps <= trainer.global_step


def _ends_training(trainer: Trainer) -> bool:
    """Whether ``on_train_end`` follows this end of an epoch (if training goes on after all, the next one is saved)."""
    epochs, steps = trainer.max_epochs, trainer.max_steps
    last_epoch = epochs is not None and 0 <= epochs <= trainer.current_epoch + 1
    return last_epoch or trainer.should_stop or 0 <= steps <= trainer.global_step


def _validates(trainer: Trainer, batch_idx: int) -> bool:
    """Whether a validation follows this step, which does not end an epoch."""
    epochs = trainer.check_val_every_n_epoch
    if not trainer.enable_validation or trainer.val_check_batch is None:
        return False  # None: by the clock, at moments that no run repeats
    if epochs is not None and (trainer.current_epoch + 1) % epochs:
        return False
    step = trainer.fit_loop.total_batch_idx if epochs is None else batch_idx
    return (step + 1) % trainer.val_check_batch == 0


def _check(path: Path) -> None:
    """Refuse a file that could not be loaded without running code from it."""
    try:
        torch.load(path, weights_only=True, mmap=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise TypeError(f"a checkpoint may hold tensors and plain values only: {error}") from error
