"""Prompts without responses, to be answered in dual steps, evaluations and certificates."""

from collections.abc import Iterator

from data.schema import BadRow, PromptRow
from data.sources.files import Record, Table
from data.sources.messages import prompt_of


class Prompts:
    """Prompts from one column of JSONL, JSON, CSV or Parquet files, or of a hub dataset. Other columns are ignored.

    Args:
        path: File, pattern, folder or hub id, as in ``Table``.
        column: The column with the prompt: a text, or a list of turns that ends with the user's.
        user_turn: Whether a text is a user's turn, to be rendered by the chat template. false: it is plain text.
        split: Hub: the split to read.
        revision: Hub: branch, tag or commit.
        config: Hub: name of the configuration.
        licence: Licence of the prompts, for reports.
    """

    def __init__(
        self,
        path: str,
        column: str = "prompt",
        user_turn: bool = True,
        split: str = "train",
        revision: str | None = None,
        config: str | None = None,
        licence: str = "unknown",
    ) -> None:
        self.table = Table(path, split, revision, None, config)
        self.column, self.user_turn = column, user_turn
        self.licence = licence

    def describe(self) -> dict[str, str]:
        return {
            "source": type(self).__name__,
            **self.table.describe(),
            "column": self.column,
            "user_turn": str(self.user_turn),
        }

    def __iter__(self) -> Iterator[PromptRow | BadRow]:
        def parse(name: str, record: Record) -> PromptRow:
            return PromptRow(name, prompt_of(name, self.column, record.get(self.column), self.user_turn))

        yield from self.table.parsed(parse)
