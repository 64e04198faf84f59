"""Ends a run of dual ascent before its last epoch: the limit is met, or the multiplier has settled.

C-DPO's Algorithm repeats training and dual step; what we read of the paper names no rule by which it stops, so this
one is ours.
"""

from dataclasses import dataclass

from torch import Tensor

from lit_safe.constraint.limits import Standing


@dataclass(frozen=True)
class StopRule:
    """When a run ends early. Without one, it runs for all its epochs.

    An estimate counts if it meets every limit (the one-sided 95 % bound is within the limit), or if the step after it
    moves no multiplier by more than ``settled``. Training ends after ``in_a_row`` estimates that count. A rule that
    looks often finds a lucky estimate sooner or later: it certifies nothing, ``certify`` does.

    Args:
        met: Whether to stop when the limits are met.
        settled: Stop when no multiplier moves by more than this, in nats of reward per cost unit; 0 never does. A
            multiplier that stays at its maximum has not settled.
        in_a_row: Number of estimates in a row that must count.

    Raises:
        ValueError: If ``settled`` is negative, ``in_a_row`` is below 1, or nothing would ever stop the run.
    """

    met: bool = True
    settled: float = 0.0
    in_a_row: int = 2

    def __post_init__(self) -> None:
        if not 0 <= self.settled < float("inf"):
            raise ValueError(f"settled must be at least 0 and finite, got {self.settled}")
        if self.in_a_row < 1:
            raise ValueError(f"in_a_row must be at least 1, got {self.in_a_row}")
        if not self.met and self.settled == 0:
            raise ValueError("this rule never stops a run: set met, or settled above 0, or leave dual.stop null")

    def counts(self, standing: Standing, before: Tensor, after: Tensor, maximum: Tensor | float, moved: bool) -> bool:
        """Whether an estimate counts towards a stop.

        Args:
            standing: The estimate and its limits.
            before: The multiplier before the step after the estimate, [] or [C].
            after: The same after the step.
            maximum: The multiplier's upper end, [] or [C].
            moved: Whether a step was taken. Where none is, the multiplier has not settled either.
        """
        if self.met and standing.feasible:
            return True
        still = bool(((after - before).abs() <= self.settled).all() and (after < maximum).all())
        return self.settled > 0 and moved and still
