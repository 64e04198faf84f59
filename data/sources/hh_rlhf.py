"""HH-RLHF: two transcripts that share a dialogue and end in different answers. Bai et al. 2022, arXiv:2204.05862."""

import re
from collections.abc import Iterator
from typing import Literal

from data.schema import BadRow, Message, Response, Row, check_text
from data.sources.files import Record
from data.sources.tables import Rows, table
from lit_safe.types import ResponsesFrom

ROLES = {"Human": "user", "Assistant": "assistant"}
_TURN = re.compile(r"\n\n(Human|Assistant):")


class HHRLHF:
    r"""Transcripts of the form ``"\n\nHuman: ...\n\nAssistant: ..."``, split into turns.

    The turns that both transcripts share are the prompt. The rest of each transcript must be one answer.

    Args:
        path: Hub id, or a local file with the columns chosen and rejected; in Python also rows in memory.
        split: Hub only: train or test.
        revision: Hub only: branch, tag or commit.
        data_dir: Hub only: harmless-base, helpful-base, helpful-online or helpful-rejection-sampled.
        chosen_is: Why ``chosen`` was preferred: "safer" in harmless-base, "better" in the helpful sets.
        responses_from: Who wrote the responses.
        config: Hub only: name of the dataset's configuration.
    """

    licence = "MIT"

    def __init__(
        self,
        path: Rows = "Anthropic/hh-rlhf",
        split: str = "train",
        revision: str | None = None,
        data_dir: str | None = "harmless-base",
        chosen_is: Literal["safer", "better"] = "safer",
        responses_from: ResponsesFrom = "model",
        config: str | None = None,
    ) -> None:
        self.table = table(path, split, revision, data_dir, config=config)
        self.chosen_is = chosen_is
        self.responses_from = responses_from

    def describe(self) -> dict[str, str]:
        options = {"chosen_is": self.chosen_is, "responses_from": self.responses_from}
        return {"source": type(self).__name__, **self.table.describe(), **options}

    def __iter__(self) -> Iterator[Row | BadRow]:
        return self.table.parsed(self._row)

    def _row(self, name: str, record: Record) -> Row:
        chosen, rejected = (turns_of(name, side, record.get(side)) for side in ("chosen", "rejected"))
        prompt = chosen[:-1]
        if rejected[:-1] != prompt:
            raise BadRow(name, "rejected", "differs from chosen in more than its last turn")
        if not prompt:
            raise BadRow(name, "chosen", "has no turn before the answer")
        return Row(
            name,
            prompt,
            (Response(chosen[-1].content), Response(rejected[-1].content)),
            better=0 if self.chosen_is == "better" else None,
            safer=0 if self.chosen_is == "safer" else None,
            responses_from=self.responses_from,
        )


def turns_of(name: str, column: str, transcript: object) -> tuple[Message, ...]:
    """The turns of a transcript, without surrounding space; the last is the assistant's. Raises BadRow otherwise."""
    text = check_text(name, column, transcript)
    before, *parts = _TURN.split(text)
    if before.strip() or not parts:
        raise BadRow(name, column, "does not begin with a turn")
    turns = tuple(Message(ROLES[role], content.strip()) for role, content in zip(parts[::2], parts[1::2], strict=True))
    if turns[-1].role != "assistant":
        raise BadRow(name, column, "does not end with the assistant")
    if not all(turn.content for turn in turns):
        raise BadRow(name, column, "has an empty turn")
    return turns
