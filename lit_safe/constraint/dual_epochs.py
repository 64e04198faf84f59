"""The epochs whose end estimates the cost and moves the multiplier."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DualEpochs:
    """Which epochs estimate, which of them take a step, and the number of that step.

    Args:
        every_n: The end of every n-th epoch estimates the cost.
        warmup: Epochs at the start that take no step.
        freeze_last: Epochs at the end that train under one multiplier, with no step after them either.

    Raises:
        ValueError: If ``every_n`` is below 1, or another argument is negative.
    """

    every_n: int = 1
    warmup: int = 0
    freeze_last: int = 0

    def __post_init__(self) -> None:
        if self.every_n < 1 or self.warmup < 0 or self.freeze_last < 0:
            raise ValueError(
                "every_n_epochs must be >= 1, warmup_epochs and freeze_last_epochs >= 0, "
                f"got {self.every_n}, {self.warmup}, {self.freeze_last}"
            )

    def estimates(self, epoch: int) -> bool:
        """Whether the end of ``epoch`` estimates the cost."""
        return (epoch + 1) % self.every_n == 0

    def moves(self, epoch: int, epochs: int | None) -> bool:
        """Whether an estimate at the end of ``epoch`` is followed by a step, in a run of ``epochs`` (None: unknown)."""
        frozen = self.freeze_last > 0 and epochs is not None and epoch >= epochs - self.freeze_last
        return epoch >= self.warmup and not frozen

    def number(self, epoch: int, epochs: int | None) -> tuple[int, int | None]:
        """(number of the step at the end of ``epoch``, from 0; number of steps of the run, None if unknown)."""
        number = (epoch - self.warmup) // self.every_n
        return number, None if epochs is None else (epochs - self.freeze_last - self.warmup) // self.every_n
