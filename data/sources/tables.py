"""The table behind a source's ``path``: files, a hub dataset, or rows in memory."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from data.schema import BadRow
from data.sources.files import Table
from data.sources.formats import Records

Rows = str | Iterable[Mapping[str, Any]]
"""A path, a pattern or a hub id; or the rows: a ``datasets.Dataset`` or a list of dicts."""


class MemoryTable(Table):
    """Rows of a ``datasets.Dataset`` or of a list of dicts. Rows are named ``rows:<index>``, from 0.

    Args:
        rows: Mappings from column to value. They are read several times, so a generator is refused.

    Raises:
        ValueError: ``rows`` can be read only once.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        super().__init__("rows")
        if iter(rows) is rows:
            raise ValueError(f"rows must be readable more than once, got a {type(rows).__name__}: give a list of it")
        self.rows = rows

    @property
    def file(self) -> bool:
        return False

    @property
    def name(self) -> str:
        return "rows"

    def describe(self) -> dict[str, str]:
        """The name and the hash of all rows."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(json.dumps(row, sort_keys=True, default=str).encode("utf-8", "surrogatepass") + b"\n")
        return {"name": self.name, "sha256": digest.hexdigest()}

    def records(self) -> Records:
        """Every row with its name, in order; a ``BadRow`` for an entry that is not a mapping."""
        for index, row in enumerate(self.rows):
            name = f"{self.name}:{index}"
            yield (name, row) if isinstance(row, Mapping) else BadRow(name, "", f"is {type(row).__name__}, not a row")


def table(
    path: Rows,
    split: str = "train",
    revision: str | None = None,
    data_dir: str | None = None,
    config: str | None = None,
) -> Table:
    """The rows of ``path``. The other arguments are those of ``Table``; rows in memory ignore them."""
    return Table(path, split, revision, data_dir, config) if isinstance(path, str) else MemoryTable(path)
