"""A subset of a source, chosen by hash; it caps or thins one source of a mix."""

import heapq
from collections.abc import Iterator

from data.schema import BadRow, Row, Source
from data.sources.wrapped import Wrapped
from lit_safe.hashing import uniform


class Sample(Wrapped):
    """The pairs of ``source`` with the lowest hashes of (seed, text), in the source's order.

    The choice depends only on the text of the pairs. Duplicates are chosen together and count once towards ``limit``.
    Adding rows to the source does not change the relative rank of the others.

    Args:
        source: Source of the pairs.
        share: Approximate share of the pairs to keep, in (0, 1].
        limit: Maximum number of distinct pairs; None keeps all.
        seed: A different seed gives a different subset.
    """

    def __init__(self, source: Source, share: float = 1.0, limit: int | None = None, seed: int = 0) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"share must lie in (0, 1], got {share}")
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit}")
        super().__init__(source)
        self.source, self.share, self.limit, self.seed = source, share, limit, seed

    def describe(self) -> dict[str, str]:
        return {**self.source.describe(), "share": str(self.share), "limit": str(self.limit), "seed": str(self.seed)}

    def __iter__(self) -> Iterator[Row | BadRow]:
        rows = list(self.source)
        points = {self._point(row) for row in rows if isinstance(row, Row)}
        kept = {point for point in points if point < self.share}
        if self.limit is not None:
            kept = set(heapq.nsmallest(self.limit, kept))
        return (row for row in rows if isinstance(row, BadRow) or self._point(row) in kept)

    def _point(self, row: Row) -> float:
        return uniform("sample", self.seed, row.prompt, *sorted(response.text for response in row.responses))
