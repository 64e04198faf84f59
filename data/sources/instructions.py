"""Responses for fine-tuning: instruction files, and the preferred side of any source of pairs."""

from collections.abc import Iterator
from typing import Literal

from data.schema import BadRow, Row, SftRow, Source, check_text
from data.sources.files import Record
from data.sources.messages import prompt_of
from data.sources.tables import Rows, table
from data.sources.wrapped import Wrapped


class Instructions:
    """Prompt and response columns: ``prompt``/``response``, Alpaca's ``instruction``/``input``/``output``, or others.

    Args:
        path: A local JSONL, JSON, CSV or Parquet file, or a hub id; in Python also rows in memory.
        split: Hub only: the split to read.
        revision: Hub only: branch, tag or commit.
        prompt: Column of the prompt: plain text or a list of turns.
        input: Column of an optional second part of the prompt (Alpaca's input), or None.
        response: Column of the response.
        tools: Column of the functions that the assistant may call (JSON schemas), for the chat template; or None.
        user_turn: true makes a plain prompt a user's turn, rendered by the chat template; false takes it as raw text.
        licence: Licence of the data.
        config: Hub only: name of the dataset's configuration.
    """

    def __init__(
        self,
        path: Rows,
        split: str = "train",
        revision: str | None = None,
        prompt: str = "prompt",
        input: str | None = None,
        response: str = "response",
        user_turn: bool = True,
        tools: str | None = "tools",
        licence: str = "unknown",
        config: str | None = None,
    ) -> None:
        self.table = table(path, split, revision, config=config)
        self.prompt, self.input, self.response = prompt, input, response
        self.user_turn, self.tools = user_turn, tools
        self.licence = licence

    def describe(self) -> dict[str, str]:
        columns = f"{self.prompt},{self.input},{self.response}"
        options = {"columns": columns, "user_turn": str(self.user_turn), "tools": str(self.tools)}
        return {"source": type(self).__name__, **self.table.describe(), **options}

    def __iter__(self) -> Iterator[SftRow | BadRow]:
        return self.table.parsed(self._row)

    def _row(self, name: str, record: Record) -> SftRow:
        prompt = record.get(self.prompt)
        more = None if self.input is None else record.get(self.input)
        if self.input is not None and more not in (None, ""):
            instruction = check_text(name, self.prompt, prompt)
            prompt = f"{instruction}\n\n{check_text(name, self.input, more)}"
        context = prompt_of(name, self.prompt, prompt, self.user_turn, record, self.tools)
        return SftRow(name, context, check_text(name, self.response, record.get(self.response)))


class ResponsesOf(Wrapped):
    """One side of a source of pairs, for fine-tuning; each distinct prompt with response once.

    Args:
        source: Source of the pairs.
        which: The better response, the safer one, every response flagged safe, every one flagged unsafe, or all
            responses. With ``all``, the fine-tuned model gives every kind of response that the pairs compare, so it can
            be their reference.
    """

    def __init__(self, source: Source, which: Literal["better", "safer", "safe", "unsafe", "all"] = "safe") -> None:
        super().__init__(source)
        self.source, self.which = source, which

    def describe(self) -> dict[str, str]:
        return {**self.source.describe(), "which": self.which}

    def __iter__(self) -> Iterator[SftRow | BadRow]:
        seen = set()
        for row in self.source:
            if isinstance(row, BadRow):
                yield row
                continue
            for k, response in enumerate(row.responses):
                if self._wants(row, k) and (row.prompt, response.text) not in seen:
                    seen.add((row.prompt, response.text))
                    yield SftRow(row.id, row.prompt, response.text, row.split_group, response.turns)

    def _wants(self, row: Row, k: int) -> bool:
        if self.which == "all":
            return True
        if self.which in ("safe", "unsafe"):
            return row.responses[k].safe is (self.which == "safe")
        return k == getattr(row, self.which)
