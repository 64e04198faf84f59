"""A user's own pairs in named columns: orders, safe flags and scores, each optional."""

from collections.abc import Iterator, Mapping, Sequence

from data.schema import BadRow, Row, check_choice, check_text
from data.sources.files import Cell, Record, number_of
from data.sources.labels import LabelColumns
from data.sources.messages import prompt_of
from data.sources.tables import Rows, table
from lit_safe.types import ResponsesFrom


class ScoredPairs:
    """Two responses to a prompt with optional labels by a scorer or by people. Their position implies no order.

    The prompt is plain text or a list of turns. If no column says which response is better or safer, the order follows
    from the rewards or costs that the annotator reads from ``scores``.

    Args:
        path: A local JSONL, JSON, CSV or Parquet file, or a hub id; in Python also rows in memory.
        split: Hub only: the split to read.
        revision: Hub only: branch, tag or commit.
        prompt: Column of the prompt.
        responses: Columns of the two responses.
        scores: For each score its two columns, of response 0 and of response 1.
        safe: The two columns of safe flags, or None.
        better: Column with the index (0 or 1) of the more helpful response, or None.
        safer: Column with the index of the less harmful response, or None.
        tools: Column of the functions that the assistant may call (JSON schemas), for the chat template; or None.
        user_turn: true makes a plain prompt a user's turn, rendered by the chat template; false takes it as raw text.
        licence: Licence of the data.
        responses_from: Who wrote the responses.
        config: Hub only: name of the dataset's configuration.
    """

    def __init__(
        self,
        path: Rows,
        split: str = "train",
        revision: str | None = None,
        prompt: str = "prompt",
        responses: Sequence[str] = ("response_0", "response_1"),
        scores: Mapping[str, Sequence[str]] | None = None,
        safe: Sequence[str] | None = None,
        better: str | None = None,
        safer: str | None = None,
        user_turn: bool = True,
        tools: str | None = "tools",
        licence: str = "unknown",
        responses_from: ResponsesFrom = "unknown",
        config: str | None = None,
    ) -> None:
        if len(responses) != 2:
            raise ValueError(f"responses must name two columns, got {list(responses)}")
        self.table = table(path, split, revision, config=config)
        self.prompt, self.responses = prompt, tuple(responses)
        self.labels = LabelColumns(scores, safe)
        self.better, self.safer = better, safer
        self.user_turn, self.tools = user_turn, tools
        self.licence = licence
        self.responses_from = responses_from

    def describe(self) -> dict[str, str]:
        return {
            "source": type(self).__name__,
            **self.table.describe(),
            "columns": f"{self.prompt},{self.responses},better={self.better},safer={self.safer}",
            "user_turn": str(self.user_turn),
            "tools": str(self.tools),
            **self.labels.describe(),
            "responses_from": self.responses_from,
        }

    def __iter__(self) -> Iterator[Row | BadRow]:
        return self.table.parsed(self._row)

    def _row(self, name: str, record: Record) -> Row:
        prompt = prompt_of(name, self.prompt, record.get(self.prompt), self.user_turn, record, self.tools)
        first, second = (
            self.labels.response(name, record, k, check_text(name, column, record.get(column)))
            for k, column in enumerate(self.responses)
        )
        better, safer = (
            None if column is None else _choice(name, column, record.get(column))
            for column in (self.better, self.safer)
        )
        return Row(name, prompt, (first, second), better, safer, self.responses_from)


def _choice(name: str, column: str, value: object) -> int:
    if isinstance(value, Cell):
        number = number_of(name, column, value)
        value = int(number) if number.is_integer() else value
    return check_choice(name, column, value)
