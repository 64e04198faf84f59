"""Prompts without responses, to be answered in dual steps, evaluations and certificates."""

from collections.abc import Iterator, Mapping

from data.schema import BadRow, PromptRow, check_text
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
        category: The column with the prompt's category, such as the kind of harm. Null: prompts have no category.
        keep: Column → value. Only rows with these values are read. Null reads all.
        harmful: Whether the prompts are harmful requests (true) or harmless ones (false); null if that is not known.
        evaluation_only: Whether training must refuse these prompts, dual steps included.
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
        category: str | None = None,
        keep: dict[str, str] | None = None,
        harmful: bool | None = None,
        evaluation_only: bool = False,
    ) -> None:
        self.table = Table(path, split, revision, None, config)
        self.column, self.user_turn = column, user_turn
        self.licence = licence
        self.keep: Mapping[str, str] = dict(keep or {})
        self.category, self.harmful, self.evaluation_only = category, harmful, evaluation_only

    def describe(self) -> dict[str, str]:
        told = {
            "source": type(self).__name__,
            **self.table.describe(),
            "column": self.column,
            "user_turn": str(self.user_turn),
        }
        return told | {f"keep.{column}": value for column, value in sorted(self.keep.items())}

    def __iter__(self) -> Iterator[PromptRow | BadRow]:
        for item in self.table.parsed(self._parse):
            if item is not None:
                yield item

    def _parse(self, name: str, record: Record) -> PromptRow | None:
        """The prompt of a row; None if it has not the values of ``keep``."""
        for column, value in self.keep.items():
            if check_text(name, column, record.get(column)) != value:
                return None
        prompt = prompt_of(name, self.column, record.get(self.column), self.user_turn)
        category = self.category and check_text(name, self.category, record.get(self.category))
        return PromptRow(name, prompt, category, self.harmful)
