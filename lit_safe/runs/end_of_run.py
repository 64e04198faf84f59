"""The end of a run, and how a resumed run repeats it after a failure.

Training ends in this order. The iterate is saved. ``DualAscent`` loads the final weights (the iterate or the average)
into the module. ``BeforeAfter`` evaluates them and writes the report. A run resumed from the checkpoint repeats the
last two.
"""

from typing import Any, Protocol, runtime_checkable

from lightning import Callback, LightningModule, Trainer

from lit_safe.protocols.trainer import connected

FAR = 2**62  # more epochs or steps than any run has


@runtime_checkable
class ActsAfterTraining(Protocol):
    """A callback that acts after the last checkpoint is saved. A resumed run repeats this."""

    failed: str | None
    """The error of this action in one line, or None. With an error, the exit status is not 0."""

    def acts_after_training(self) -> bool:
        """Whether there is something to do after training."""


@runtime_checkable
class HearsOfTheEnd(Protocol):
    """A callback that is told when the last checkpoint is saved."""

    def end_saved(self, trainer: Trainer) -> None:
        """Called after the end of training is saved, before anything else is done with the trained policy."""


class Owner(Protocol):
    """The checkpoint callback on whose behalf ``FirstInLine`` acts."""

    only_end: bool

    def left_open(self, trainer: Trainer) -> bool:
        """Whether the run of the restored checkpoint still had something to do after its last step."""

    def save_end(self, trainer: Trainer) -> None:
        """Save the end of training."""


class FirstInLine(Callback):
    """Acts for a checkpoint callback before all other callbacks; Lightning calls checkpoint callbacks last."""

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self._bounds: tuple[int | None, int] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let a run start although its training is complete, if its end has something left to do.

        Lightning calls no hooks if ``max_epochs`` or ``max_steps`` is reached, so both are raised until the run starts.
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
        """Restore the bounds. If the checkpoint is at the end of an epoch, continue after this epoch.

        With ``max_steps``, Lightning 2.6 treats such an epoch as unfinished: it would end and count it twice.
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
        """Save the trained policy before anything that may fail."""
        self.owner.save_end(trainer)
        for callback in connected(trainer).callbacks:
            if isinstance(callback, HearsOfTheEnd):
                callback.end_saved(trainer)


def nothing_to_train(trainer: Trainer) -> bool:
    """Whether a run that starts has no training steps left: it was resumed only for its end."""
    epochs, steps = trainer.max_epochs, trainer.max_steps
    processed = _processed(trainer)
    return 0 <= steps <= trainer.global_step or (epochs is not None and 0 <= epochs <= processed)


def failures(callbacks: Any) -> list[str]:
    """The errors after training, one line each."""
    return [c.failed for c in callbacks if isinstance(c, ActsAfterTraining) and c.failed is not None]


def end_epoch_again(trainer: Trainer, module: LightningModule, epoch: int, begin: str) -> None:
    """Call the hooks of the end of ``epoch``, starting with the callback whose ``state_key`` is ``begin``.

    The run was resumed from a checkpoint that was saved directly before this callback's hook.
    """
    callbacks = connected(trainer).callbacks
    at = next((k for k, callback in enumerate(callbacks) if callback.state_key == begin), len(callbacks))
    progress = trainer.fit_loop.epoch_progress
    completed = progress.current.completed
    progress.current.completed = epoch  # the value during the end of an epoch
    progress.total.completed -= 1
    try:
        for callback in callbacks[at:]:
            callback.on_train_epoch_end(trainer, module)
    finally:
        progress.current.completed = completed
        progress.total.completed += 1


def _processed(trainer: Trainer) -> int:
    """Number of epochs whose steps are all done."""
    return int(trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]
