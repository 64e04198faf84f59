"""How a run ends, and comes to its end again when it is resumed after something failed there.

Training ends in this order: the iterate is saved, ``DualAscent`` puts what ships into the module, ``BeforeAfter``
evaluates it and writes the report. All but the first can be done again from the checkpoint.
"""

from typing import Any, Protocol, runtime_checkable

from lightning import Callback, LightningModule, Trainer

FAR = 2**62  # epochs or steps that no run takes


@runtime_checkable
class ActsAfterTraining(Protocol):
    """A callback with something to do once the last checkpoint is saved; a resumed run does it again."""

    failed: str | None
    """What went wrong there, in one line: the checkpoint is whole all the same, the exit status is not 0."""

    def acts_after_training(self) -> bool:
        """Whether there is something to do."""


@runtime_checkable
class HearsOfTheEnd(Protocol):
    """A callback that wants to know when the last checkpoint is saved."""

    def end_saved(self, trainer: Trainer) -> None:
        """Called once the end of training is saved, before anything else is done with what was trained."""


class Owner(Protocol):
    """The checkpoint callback that ``FirstInLine`` speaks for."""

    only_end: bool

    def left_open(self, trainer: Trainer) -> bool:
        """Whether the restored checkpoint was saved before something that its run still had to do."""

    def save_end(self, trainer: Trainer) -> None:
        """Save the end of training."""


class FirstInLine(Callback):
    """What a checkpoint callback does before all other callbacks; which Lightning calls last."""

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self._bounds: tuple[int | None, int] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let a run whose training is over begin, where something is left to do at its end.

        Lightning calls no hook of a run whose bounds are reached: they are out of reach until it has begun.
        """
        self._bounds = None
        unknown = trainer.strategy.restore_checkpoint_after_setup  # the checkpoint is read later
        if trainer.ckpt_path is None or not (unknown or self.owner.left_open(trainer)):
            return
        loop = trainer.fit_loop
        self._bounds = loop.max_epochs, loop.max_steps
        if loop.max_epochs is not None and loop.max_epochs >= 0:
            loop.max_epochs = FAR
        if loop.max_steps >= 0:
            loop.epoch_loop.max_steps = FAR

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the bounds back, and go on after an epoch that the checkpoint holds the end of.

        Under ``max_steps`` Lightning 2.6 takes such an epoch for unfinished: it would end it, and count it, twice.
        """
        loop = trainer.fit_loop
        if self._bounds is not None:
            loop.max_epochs, loop.epoch_loop.max_steps = self._bounds
        if loop.restarted_on_epoch_end:
            loop.epoch_progress.increment_completed()
            loop.epoch_loop.restarting = False
            loop.epoch_loop.reset_restart_stage()
            loop.reset_restart_stage()
        if self.owner.only_end:
            loop.max_epochs = _processed(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what was trained, before anything that may fail."""
        self.owner.save_end(trainer)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, HearsOfTheEnd):
                callback.end_saved(trainer)


def nothing_to_train(trainer: Trainer) -> bool:
    """Whether a run that begins has no step left to take: it was resumed for its end alone."""
    epochs, steps = trainer.max_epochs, trainer.max_steps
    processed = _processed(trainer)
    return 0 <= steps <= trainer.global_step or (epochs is not None and 0 <= epochs <= processed)


def failures(callbacks: Any) -> list[str]:
    """What went wrong after training, one line each."""
    return [c.failed for c in callbacks if isinstance(c, ActsAfterTraining) and c.failed is not None]


def end_epoch_again(trainer: Trainer, module: LightningModule, epoch: int, begin: str) -> None:
    """Call the hooks of the end of ``epoch`` from those of the callback ``begin`` (its ``state_key``) on.

    The checkpoint that the run was resumed from was saved between them and the hooks before.
    """
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    at = next((k for k, callback in enumerate(callbacks) if callback.state_key == begin), len(callbacks))
    progress = trainer.fit_loop.epoch_progress
    completed = progress.current.completed
    progress.current.completed = epoch  # as it is while an epoch ends
    progress.total.completed -= 1
    try:
        for callback in callbacks[at:]:
            callback.on_train_epoch_end(trainer, module)
    finally:
        progress.current.completed = completed
        progress.total.completed += 1


def _processed(trainer: Trainer) -> int:
    """Epochs whose steps are all taken."""
    return int(trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]
