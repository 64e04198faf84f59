"""Estimators of E[cost] under the current policy: what ``DualAscent`` compares with the limit."""

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

from lit_safe.types import CostEstimate, PackedBatch, PairModel, Prompt, ResponsesFrom


class Aligned(Protocol):
    """What an estimator knows of the LightningModule."""

    pair: PairModel


class HeldOut(Protocol):
    """What an estimator knows of the data: rows and prompts that no policy is trained on."""

    @property
    def responses_from(self) -> set[ResponsesFrom]:
        """Who wrote the responses of the dual split."""

    def prompts(self, split: str) -> Sequence[Prompt]:
        """The prompts of a split, each once."""

    def dual_pairs(self) -> Iterable[PackedBatch]:
        """This rank's share of the dual split's labelled pairs; every rank has as many batches of as many rows."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens."""


@runtime_checkable
class Checkable(Protocol):
    """An estimator that can say before the first step whether it will work."""

    def check(self, data: HeldOut, constraints: int) -> None:
        """Try it on one response of the data.

        Raises:
            ValueError: If the data cannot support the estimate, or costs are not finite or of another shape.
        """


@runtime_checkable
class CostEstimator(Protocol):
    """Estimates E[cost] under the policy of ``module`` as it stands.

    Leaves no trace: no gradient, training flags and random state as they were, so that training with an estimator that
    moves nothing is bit for bit training without one. Every rank calls it and gets the same numbers.
    """

    def __call__(self, module: Aligned, data: HeldOut, *, seed: int, epoch: int) -> CostEstimate:
        """Estimate; ``seed`` and ``epoch`` name the draw.

        Raises:
            ValueError: If the data cannot support the estimate, or a cost is not finite.
        """
