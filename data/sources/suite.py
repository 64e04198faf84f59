"""Suites: published sets of prompts that measure a policy and never train it.

A suite is a short file: a subclass of ``Suite`` with its licence, its columns, and whether its prompts are harmful.
"""

from collections.abc import Iterator
from typing import ClassVar, Literal

from data.schema import BadRow, Message, PromptRow, check_text
from data.sources.files import Record, Table

Half = Literal["all", "harmful", "harmless"]


class Suite:
    """Prompts with a category from a local file or a hub dataset. Training refuses them (``evaluation_only``).

    A subclass names the columns. Each entry is a tuple of names, of which a file has one: the first is that of the
    authors' own file, others are those of copies on the hub.

    Args:
        path: File, pattern, folder or hub id, as in ``Table``.
        split: Hub: the split to read.
        revision: Hub: branch, tag or commit.
        config: Hub: name of the configuration.

    Raises:
        ValueError: On reading, if the file lacks a column. The message names it, and the columns that are there.
    """

    licence: str = "unknown"
    evaluation_only = True
    prompt_columns: ClassVar[tuple[str, ...]] = ("prompt",)
    category_columns: ClassVar[tuple[str, ...]] = ("category",)
    harmful: bool | None = True

    def __init__(self, path: str, split: str = "train", revision: str | None = None, config: str | None = None) -> None:
        self.table = Table(path, split, revision, None, config)

    def describe(self) -> dict[str, str]:
        return {"source": type(self).__name__, **self.table.describe(), **self.options()}

    def options(self) -> dict[str, str]:
        """Settings of a subclass that decide which prompts are read."""
        return {}

    def __iter__(self) -> Iterator[PromptRow | BadRow]:
        checked = False

        def parse(name: str, record: Record) -> PromptRow | None:
            nonlocal checked
            if not checked:
                self._check_columns(record)
                checked = True
            return self.row(name, record)

        for row in self.table.parsed(parse):
            if row is not None:
                yield row

    def row(self, name: str, record: Record) -> PromptRow | None:
        """One prompt; None leaves the row out. Raises BadRow if it is unusable."""
        return PromptRow(name, (Message("user", self.text(name, record)),), self.category(name, record), self.harmful)

    def text(self, name: str, record: Record) -> str:
        """The prompt's text. Raises BadRow if it is unusable."""
        column = _present(record, self.prompt_columns)
        return check_text(name, column, record.get(column))

    def category(self, name: str, record: Record) -> str | None:
        """The prompt's stratum; None for a suite without categories. Raises BadRow if it is missing."""
        if not self.category_columns:
            return None
        column = _present(record, self.category_columns)
        return check_text(name, column, record.get(column)).strip()

    def needs(self) -> tuple[tuple[str, ...], ...]:
        """The columns that the file must have: for each the names, of which one is enough."""
        return tuple(filter(None, (self.prompt_columns, self.category_columns)))

    def _check_columns(self, record: Record) -> None:
        for names in self.needs():
            if not any(name in record for name in names):
                raise ValueError(
                    f"{self.table.name}: has no column {' or '.join(map(repr, names))}, which {type(self).__name__} "
                    f"reads; its columns are {', '.join(map(str, record)) or 'none'}"
                )


def _present(record: Record, names: tuple[str, ...]) -> str:
    """The first of ``names`` that the record has; the first one if it has none."""
    return next((name for name in names if name in record), names[0])


def check_option(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Check the value of an option. Raises ValueError that lists the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
