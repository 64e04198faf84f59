"""The protocols of data modules, and a check of which members an object lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from lit_safe.types import Annotation, Need, PackedBatch, Prompt, ResponsesFrom

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class RunData(Protocol):
    """The members that every data module must have, besides Lightning's loaders.

    An item of the training loader is the list of one optimizer step's micro-batches. All members except ``connect`` are
    available after ``setup``.
    """

    seed: int

    def connect(self, model: Any) -> None:
        """Use the tokenizer of ``model``. Called once, before ``setup``."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of prompts and responses."""

    @property
    def report(self) -> dict[str, Any]:
        """How many rows were read, kept and dropped, and why, as JSON values."""

    @property
    def report_lines(self) -> list[str]:
        """The report as a few lines of text."""

    @property
    def licences(self) -> dict[str, str]:
        """The licence of each source, by source name."""

    @property
    def stop_ids(self) -> frozenset[int]:
        """The tokens that end a response."""

    @property
    def largest_micro_batch(self) -> tuple[int, int]:
        """Upper bounds on the tokens (with padding) and on the scored tokens of a training forward pass."""

    def prompts(self, split: Any) -> Sequence[Prompt]:
        """The prompts of a split (train, val, dual or certify), each once."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens."""


class PreferenceRunData(RunData, Protocol):
    """The further members that preference training needs."""

    @property
    def constraints(self) -> tuple[str, ...]:
        """Names of the C cost constraints, in the order of :attr:`Annotation.cost`."""

    @property
    def responses_from(self) -> set[ResponsesFrom]:
        """The origins of the dual split's responses."""

    def require(self, needs: Sequence[Need]) -> None:
        """Check that every pair has the labels that an objective needs.

        Raises:
            ValueError: If a label is missing. The message names its row and column.
        """

    def select(self, keeps: Callable[[Annotation], Tensor]) -> None:
        """Train only on pairs whose labels ``keeps`` accepts (:meth:`Selective.keeps`).

        Raises:
            ValueError: If no training pair is left.
        """

    def pairs(self, split: Any) -> Sequence[Any]:
        """The labelled pairs of a split as text."""

    def batches_of(self, split: Any, most: int | None = None) -> Iterable[PackedBatch]:
        """This rank's part of a split's pairs, of at most ``most`` pairs. All ranks have equally many batches."""

    def dual_pairs(self) -> Iterable[PackedBatch]:
        """This rank's part of the dual split's pairs."""


def missing_members(thing: object, protocol: type) -> list[str]:
    """Members of ``protocol`` that ``thing`` lacks. Properties are not read, because they may not be ready."""
    asked: dict[str, None] = {}
    for base in protocol.__mro__:
        if getattr(base, "_is_protocol", False):
            asked |= dict.fromkeys([*vars(base).get("__annotations__", {}), *vars(base)])
    there = {*dir(type(thing)), *getattr(thing, "__dict__", {})}
    return sorted(name for name in asked if not name.startswith("_") and name not in there)
