"""What the callbacks of a run ask of each other."""

from typing import Protocol, runtime_checkable

from lightning import Callback, Trainer


@runtime_checkable
class SavesEpochEnd(Protocol):
    """A callback that saves a checkpoint before an epoch's end does anything that may fail."""

    def save_within_epoch_end(self, trainer: Trainer, caller: Callback) -> None:
        """Save now. A run that resumes from this checkpoint repeats what ``caller`` does at the epoch's end."""


@runtime_checkable
class ReadsReference(Protocol):
    """A callback that may ask for the reference during training, and not only before and after it."""

    @property
    def reads_reference(self) -> bool:
        """Whether it does, with its settings."""


@runtime_checkable
class StartsMultiplier(Protocol):
    """A callback that gives a multiplier of ``auto`` its start value before the first step."""

    def multiplier_start(self) -> tuple[float, ...] | None:
        """The start value(s), one per constraint. None before they are known."""
