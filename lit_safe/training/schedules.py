"""Learning-rate schedules: pure functions from (step, total steps) to a factor on the learning rate."""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@runtime_checkable
class Schedule(Protocol):
    """Factor on the learning rate for optimizer step ``step`` (from 0) of ``total``."""

    def __call__(self, step: int, total: int) -> float:
        """The factor, >= 0."""


def _check(**shares: float) -> None:
    """Check that a warm-up is in [0, 1) and a final factor in [0, 1]."""
    for name, value in shares.items():
        whole = name == "final"
        if not (0 <= value < 1 or (whole and value == 1)):
            raise ValueError(f"{name} must lie in [0, 1{']' if whole else ')'}, got {value}")


def _warmup(step: int, total: int, ratio: float) -> tuple[float, float]:
    """(factor of a linear warm-up, progress in [0, 1] after it)."""
    steps = math.ceil(ratio * total)
    return min(1.0, (step + 1) / (steps + 1)), min(1.0, max(0, step - steps) / max(1, total - steps))


@dataclass(frozen=True)
class Constant:
    """A linear warm-up, then the full rate.

    Args:
        warmup_ratio: Share of all optimizer steps used for the warm-up, in [0, 1).

    Raises:
        ValueError: If ``warmup_ratio`` is outside its range.
    """

    warmup_ratio: float = 0.0

    def __post_init__(self) -> None:
        _check(warmup_ratio=self.warmup_ratio)

    def __call__(self, step: int, total: int) -> float:
        """The factor, >= 0."""
        return _warmup(step, total, self.warmup_ratio)[0]


@dataclass(frozen=True)
class Cosine:
    """A linear warm-up, then a cosine decay to ``final``.

    Args:
        warmup_ratio: Share of all optimizer steps used for the warm-up, in [0, 1).
        final: Factor at the end, in [0, 1]. With 0, the policy freezes while the multiplier still changes. Use a value
            above 0, e.g. 0.1, in runs with a dual step.
        until: Share of the steps after the warm-up, in (0, 1], after which ``final`` is reached and kept. A run with a
            dual step ends closer to its limit if the multiplier still changes at the low rate.

    Raises:
        ValueError: If an argument is outside its range.
    """

    warmup_ratio: float = 0.03
    final: float = 0.0
    until: float = 1.0

    def __post_init__(self) -> None:
        _check(warmup_ratio=self.warmup_ratio, final=self.final)
        if not 0 < self.until <= 1:
            raise ValueError(f"until must lie in (0, 1], got {self.until}")

    def __call__(self, step: int, total: int) -> float:
        """The factor, >= 0."""
        warm, progress = _warmup(step, total, self.warmup_ratio)
        return warm * (self.final + (1 - self.final) * (1 + math.cos(math.pi * min(1.0, progress / self.until))) / 2)


@dataclass(frozen=True)
class Linear:
    """A linear warm-up, then a linear decay to ``final``.

    Args:
        warmup_ratio: Share of all optimizer steps used for the warm-up, in [0, 1).
        final: Factor at the end, in [0, 1].

    Raises:
        ValueError: If an argument is outside its range.
    """

    warmup_ratio: float = 0.0
    final: float = 0.0

    def __post_init__(self) -> None:
        _check(warmup_ratio=self.warmup_ratio, final=self.final)

    def __call__(self, step: int, total: int) -> float:
        """The factor, >= 0."""
        warm, progress = _warmup(step, total, self.warmup_ratio)
        return warm * (self.final + (1 - self.final) * (1 - progress))
