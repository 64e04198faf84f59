"""Checkpoints from which a run continues to the bit."""

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

FOLDER = "checkpoints"
LAST = "last.ckpt"


class RunCheckpoint(Checkpoint):
    """Keeps ``<run folder>/checkpoints/last.ckpt``, saved at boundaries of optimizer steps.

    It is replaced atomically every ``every_n_steps``, at the end of each epoch (after the dual step) and of the fit; a
    kill at any moment leaves a whole file. Where a validation is due after a step, the step is saved after it: a run
    resumed from before would not validate. An epoch's last step is never saved by itself: a run resumed from there
    would skip what happens at the epoch's end.

    Args:
        every_n_steps: Save after each so many optimizer steps; null saves at epoch ends alone.
        keep_epochs: Keep the end of each epoch too, as ``epoch-<n>.ckpt``.
    """

    def __init__(self, every_n_steps: int | None = 100, keep_epochs: bool = False) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps must be >= 1 or null, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self.keep_epochs = keep_epochs
        self._after_validation = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on after an epoch that the checkpoint holds the end of.

        Under ``max_steps`` Lightning 2.6 takes such an epoch for unfinished: it would end it, and count it, twice.
        """
        loop = trainer.fit_loop
        if loop.restarted_on_epoch_end:
            loop.epoch_progress.increment_completed()
            loop.epoch_loop.restarting = False
            loop.epoch_loop.reset_restart_stage()
            loop.reset_restart_stage()

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
        if self._after_validation and not trainer.sanity_checking:
            self._after_validation = False
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save. Lightning calls checkpoint callbacks last, so after a dual step.

        The last epoch is left to ``on_train_end``: a run resumed from before would find nothing to do and skip it.
        """
        if not _ends_training(trainer):
            self._save(trainer, trainer.current_epoch)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, with what callbacks did since the last epoch."""
        self._save(trainer, trainer.current_epoch - 1)

    def _folder(self, trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir) / FOLDER

    def _save(self, trainer: Trainer, ended: int | None = None) -> None:
        """Replace the last checkpoint; ``ended`` is the epoch that this is the end of."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        path = self._folder(trainer) / LAST
        new = path.with_suffix(".tmp")
        trainer.save_checkpoint(new, weights_only=False)  # on every rank: gathering sharded weights takes all of them
        if trainer.is_global_zero:
            _check(new)
            with new.open("r+b") as file:  # Windows syncs no handle that cannot write
                os.fsync(file.fileno())
            os.replace(new, path)
            if self.keep_epochs and ended is not None:
                shutil.copyfile(path, new)
                os.replace(new, path.with_name(f"epoch-{ended}.ckpt"))
        trainer.strategy.barrier("last.ckpt")


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
