"""The table behind a source's ``path``: files, a hub dataset, or rows in memory."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data.schema import BadRow
from data.sources.files import Table
from data.sources.formats import Records

Rows = str | list[str] | Iterable[Mapping[str, Any]]
"""A path, a pattern or a hub id; a list of them; or the rows: a ``datasets.Dataset`` or a list of dicts."""


class Several(Table):
    """The rows of several tables, one after the other."""

    def __init__(self, tables: Sequence[Table]) -> None:
        super().__init__(",".join(table.path for table in tables))
        self.tables = list(tables)

    @property
    def file(self) -> bool:
        return False

    @property
    def name(self) -> str:
        return ", ".join(table.name for table in self.tables)

    def describe(self) -> dict[str, str]:
        """What each table says of itself, with its number behind the key."""
        told = [table.describe() for table in self.tables]
        return {f"{key}_{i}": value for i, told_i in enumerate(told) for key, value in told_i.items()} | {
            "name": self.name
        }

    def records(self) -> Records:
        for table in self.tables:
            yield from table.records()


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
    if isinstance(path, str):
        return Table(path, split, revision, data_dir, config)
    if isinstance(path, list) and path and all(isinstance(part, str) for part in path):
        return Several([Table(part, split, revision, data_dir, config) for part in path])
    return MemoryTable(path)  # type: ignore[arg-type]  # a list of strings is gone
