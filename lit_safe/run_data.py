"""What a run asks of a data module, and what an object lacks of a protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from lit_safe.types import Annotation, Need, PackedBatch, Prompt, ResponsesFrom

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class RunData(Protocol):
    """What a run asks of any LightningDataModule of ours, beside Lightning's own loaders.

    A loader's item is the list of one optimizer step's micro-batches. All but ``connect`` is there after ``setup``.
    """

    seed: int

    def connect(self, model: Any) -> None:
        """Take the tokenizer of ``model``; called once, before ``setup``."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of prompts and responses."""

    @property
    def report(self) -> dict[str, Any]:
        """What became of the rows, as JSON."""

    @property
    def report_lines(self) -> list[str]:
        """The same for people, a few lines."""

    @property
    def licences(self) -> dict[str, str]:
        """The licence of each source, by its name."""

    @property
    def stop_ids(self) -> frozenset[int]:
        """The tokens that end a response."""

    @property
    def largest_micro_batch(self) -> tuple[int, int]:
        """A bound on the tokens of a training forward pass, padding included, and on how many of them are scored."""

    def prompts(self, split: Any) -> Sequence[Prompt]:
        """The prompts of a split (train, val, dual or certify), each once."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens."""


class PreferenceRunData(RunData, Protocol):
    """What preference training asks of its data module as well."""

    @property
    def constraints(self) -> tuple[str, ...]:
        """Names of the C cost constraints, in the order of :attr:`Annotation.cost`."""

    @property
    def responses_from(self) -> set[ResponsesFrom]:
        """Who wrote the responses of the dual split."""

    def require(self, needs: Sequence[Need]) -> None:
        """Check that every pair has the labels that an objective needs.

        Raises:
            ValueError: A label is missing; names its row and column.
        """

    def select(self, keeps: Callable[[Annotation], Tensor]) -> None:
        """Train on the pairs alone whose labels ``keeps`` accepts (:meth:`Selective.keeps`).

        Raises:
            ValueError: No training pair is left.
        """

    def pairs(self, split: Any) -> Sequence[Any]:
        """The labelled pairs of a split as texts."""

    def batches_of(self, split: Any, most: int | None = None) -> Iterable[PackedBatch]:
        """This rank's share of a split's pairs, or of ``most`` of them; every rank has as many batches."""

    def dual_pairs(self) -> Iterable[PackedBatch]:
        """The same of the dual split."""


def missing_members(thing: object, protocol: type) -> list[str]:
    """Names that ``protocol`` asks for and ``thing`` lacks. Reads no property, since a property may not be ready."""
    asked: dict[str, None] = {}
    for base in protocol.__mro__:
        if getattr(base, "_is_protocol", False):
            asked |= dict.fromkeys([*vars(base).get("__annotations__", {}), *vars(base)])
    there = {*dir(type(thing)), *getattr(thing, "__dict__", {})}
    return sorted(name for name in asked if not name.startswith("_") and name not in there)
