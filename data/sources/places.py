"""A part of a source of prompts, chosen by hash; or prompts that are kept for one split."""

from collections.abc import Iterator
from typing import get_args

from data.conversation import plain_text
from data.schema import BadRow, PromptRow, PromptSource
from data.sources.wrapped import Wrapped
from data.split import Split
from lit_safe.hashing import hash64


def place(row: PromptRow) -> int:
    """The hash by which prompts are put in order before a part of them is taken."""
    return hash64("request", plain_text(row.prompt))


class Places(Wrapped):
    """The prompts at the places ``first`` to ``first + count`` when all are ordered by a hash of their text.

    Two ``Places`` of one source whose ranges do not overlap share no prompt. The prompts keep the source's order.

    Args:
        requests: The prompts.
        first: The first place, from 0.
        count: Number of prompts; null takes all from ``first`` on.

    Raises:
        ValueError: If ``first`` is negative or ``count`` below 1; on reading, if the source has no prompt at these
            places.
    """

    def __init__(self, requests: PromptSource, first: int = 0, count: int | None = None) -> None:
        if first < 0:
            raise ValueError(f"first must be at least 0, got {first}")
        if count is not None and count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        super().__init__(requests)
        self.requests, self.first, self.count = requests, first, count

    def describe(self) -> dict[str, str]:
        return {**self.requests.describe(), "first": str(self.first), "count": str(self.count)}

    def __iter__(self) -> Iterator[PromptRow | BadRow]:
        rows = list(self.requests)
        good = sorted((row for row in rows if isinstance(row, PromptRow)), key=place)
        end = None if self.count is None else self.first + self.count
        kept = {id(row) for row in good[self.first : end]}
        if not kept:
            raise ValueError(f"the source has {len(good)} prompts, none from place {self.first} on")
        return (row for row in rows if isinstance(row, BadRow) or id(row) in kept)


class Reserved(Wrapped):
    """Prompts that all belong to one split, whatever their hash says, e.g. a file on which to certify.

    A prompt that a pair of the data has too follows the pair, so that nothing is certified on a prompt that trains.

    Args:
        requests: The prompts.
        split: ``val``, ``dual`` or ``certify``.

    Raises:
        ValueError: If ``split`` is another word, or ``dual`` for prompts that are for evaluation only.
    """

    def __init__(self, requests: PromptSource, split: Split) -> None:
        if split == "train" or split not in get_args(Split):
            raise ValueError(f"split must be val, dual or certify, got {split!r}")
        super().__init__(requests)
        if split == "dual" and self.evaluation_only:
            raise ValueError(
                "these prompts are for evaluation only and move no multiplier: split must be val or certify"
            )
        self.requests, self.split = requests, split

    def describe(self) -> dict[str, str]:
        return {**self.requests.describe(), "split": self.split}

    def __iter__(self) -> Iterator[PromptRow | BadRow]:
        return iter(self.requests)
