"""Pairs and responses that are all in one split, in place of the hash; for prompts alone: ``places.Reserved``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from data.schema import BadRow, Row, SftRow, SftSource, Source
from data.sources.wrapped import Wrapped
from data.split import Split


class _Placed(Wrapped):
    """What the two kinds of sources share.

    Raises:
        ValueError: If ``split`` is unknown, or the source is for evaluation only and would be trained on.
    """

    def __init__(self, source: Any, split: Split) -> None:
        super().__init__(source)
        if split not in get_args(Split):
            raise ValueError(f"split must be one of {', '.join(get_args(Split))}, got {split!r}")
        if split in ("train", "dual") and getattr(source, "evaluation_only", False):
            raise ValueError(f"split: {split} would train on a source that is for evaluation only: place it in val")
        self.source, self.placed_in = source, split

    @property
    def evaluation_only(self) -> bool:
        """Whether training must refuse these rows."""
        return self.placed_in != "train"

    def describe(self) -> dict[str, str]:
        return {**self.source.describe(), "placed_in": self.placed_in}


class Placed(_Placed):
    """The pairs of ``source``, all in one split: for published train and test splits, which are used as they are.

    In another split than ``train``, the prompts are for evaluation only: the same prompt in a training source is not
    trained on. A prompt that two sources place in different splits is in the first one's, and never in ``train``.

    Args:
        source: Source of the pairs.
        split: ``train``, ``val``, ``dual`` or ``certify``.
    """

    def __init__(self, source: Source, split: Split = "val") -> None:
        super().__init__(source, split)

    def __iter__(self) -> Iterator[Row | BadRow]:
        yield from self.source


class PlacedResponses(_Placed):
    """The responses of ``source``, all in one split, for fine-tuning; otherwise like ``Placed``.

    Args:
        source: Source of the responses.
        split: ``train``, ``val``, ``dual`` or ``certify``.
    """

    def __init__(self, source: SftSource, split: Split = "val") -> None:
        super().__init__(source, split)

    def __iter__(self) -> Iterator[SftRow | BadRow]:
        yield from self.source
