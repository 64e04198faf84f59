"""Estimators of E[cost] under the current policy. ``DualAscent`` compares their estimate with the limit."""

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

from lit_safe.protocols.pair import HasPair
from lit_safe.types import CostEstimate, PackedBatch, Prompt, ResponsesFrom


class HeldOut(Protocol):
    """The part of the data that an estimator uses: prompts and pairs that are not used for training."""

    @property
    def responses_from(self) -> set[ResponsesFrom]:
        """The origins of the dual split's responses."""

    def prompts(self, split: str) -> Sequence[Prompt]:
        """The prompts of a split, each once."""

    def dual_pairs(self) -> Iterable[PackedBatch]:
        """This rank's part of the dual split's labelled pairs. All ranks have equally many batches and rows."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens."""


@runtime_checkable
class Checkable(Protocol):
    """An estimator that can check, before the first step, whether it will work."""

    def check(self, data: HeldOut, constraints: int) -> None:
        """Try the estimator on one response of the data.

        Raises:
            ValueError: If the data cannot support the estimate, or costs are not finite or have the wrong shape.
        """


@runtime_checkable
class CostEstimator(Protocol):
    """Estimates E[cost] under the current policy of ``module``.

    An estimator restores gradients, training flags and random state afterwards. If the multiplier does not change,
    training with an estimator is therefore bitwise equal to training without one. Every rank calls the estimator and
    gets the same numbers.
    """

    def __call__(self, module: HasPair, data: HeldOut, *, seed: int, epoch: int) -> CostEstimate:
        """Estimate E[cost]. The random draws depend on ``seed`` and ``epoch``.

        Raises:
            ValueError: If the data cannot support the estimate, or a cost is not finite.
        """
