"""Preference data in TRL's formats: prompt (explicit or implicit), chosen and rejected, plain or conversational."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from data.schema import BadRow, Message, Row, check_text
from data.sources.files import Record
from data.sources.labels import LabelColumns
from data.sources.messages import messages_of, prompt_of
from data.sources.tables import Rows, table
from lit_safe.types import ResponsesFrom


class TRL:
    """A dataset in one of TRL's four preference formats. The format is detected for each row.

    Explicit prompt: ``prompt`` is a column beside two answers. Implicit prompt (no prompt column, or conversations that
    contain it): the prompt is the common beginning of both sides. In plain text the answers begin at the last white
    space before the first difference, so no word is cut. Turns may also have the keys ``from``/``value``. An answer is
    one assistant turn.

    Args:
        path: Hub id, or a local JSONL, JSON, CSV or Parquet file; in Python also rows in memory.
        split: Hub only: the split to read.
        revision: Hub only: branch, tag or commit.
        data_dir: Hub only: the folder inside the repository that holds the dataset.
        prompt: Column of the prompt. A row without it has an implicit prompt.
        chosen: Column of the preferred answer.
        rejected: Column of the other one.
        chosen_is: Why ``chosen`` was preferred: it is the better answer, or the safer one.
        scores: For each score its columns of the chosen and of the rejected answer.
        safe: Columns of the safe flags of the chosen and of the rejected answer, or None.
        split_group: Column whose value decides the split in place of the prompt (null in rows without), or None.
        user_turn: true makes a plain explicit prompt a user's turn, rendered by the chat template; false takes it as
            raw text, as TRL does.
        licence: Licence of the data.
        responses_from: Who wrote the responses.
        config: Hub only: name of the dataset's configuration.
    """

    def __init__(
        self,
        path: Rows,
        split: str = "train",
        revision: str | None = None,
        data_dir: str | None = None,
        prompt: str = "prompt",
        chosen: str = "chosen",
        rejected: str = "rejected",
        chosen_is: Literal["better", "safer"] = "better",
        scores: Mapping[str, Sequence[str]] | None = None,
        safe: Sequence[str] | None = None,
        split_group: str | None = None,
        user_turn: bool = False,
        licence: str = "unknown",
        responses_from: ResponsesFrom = "unknown",
        config: str | None = None,
    ) -> None:
        self.table = table(path, split, revision, data_dir, config=config)
        self.prompt, self.chosen, self.rejected = prompt, chosen, rejected
        self.chosen_is = chosen_is
        self.split_group = split_group
        self.user_turn = user_turn
        self.labels = LabelColumns(scores, safe)
        self.licence = licence
        self.responses_from = responses_from

    def describe(self) -> dict[str, str]:
        return {
            "source": type(self).__name__,
            **self.table.describe(),
            "columns": ",".join((self.prompt, self.chosen, self.rejected)),
            "chosen_is": self.chosen_is,
            "split_group": str(self.split_group),
            "user_turn": str(self.user_turn),
            **self.labels.describe(),
            "responses_from": self.responses_from,
        }

    def __iter__(self) -> Iterator[Row | BadRow]:
        return self.table.parsed(self._row)

    def _row(self, name: str, record: Record) -> Row:
        prompt, chosen, rejected = (record.get(column) for column in (self.prompt, self.chosen, self.rejected))
        group = None if self.split_group is None else record.get(self.split_group)
        context: tuple[Message, ...] | str
        if isinstance(chosen, list | dict):
            sides = messages_of(name, self.chosen, chosen), messages_of(name, self.rejected, rejected)
            context, answers = self._conversation(name, prompt, *sides)
        else:
            texts = check_text(name, self.chosen, chosen), check_text(name, self.rejected, rejected)
            context, answers = self._plain(name, prompt, *texts)
        return Row(
            name,
            context,
            (
                self.labels.response(name, record, 0, check_text(name, self.chosen, answers[0])),
                self.labels.response(name, record, 1, check_text(name, self.rejected, answers[1])),
            ),
            better=0 if self.chosen_is == "better" else None,
            safer=0 if self.chosen_is == "safer" else None,
            responses_from=self.responses_from,
            split_group=None if group is None else check_text(name, str(self.split_group), group),
        )

    def _conversation(
        self, name: str, prompt: object, chosen: tuple[Message, ...], rejected: tuple[Message, ...]
    ) -> tuple[tuple[Message, ...], tuple[str, str]]:
        shared = chosen[:-1]
        if rejected[:-1] != shared:
            raise BadRow(name, self.rejected, f"differs from {self.chosen} in more than its last turn")
        for column, side in ((self.chosen, chosen), (self.rejected, rejected)):
            if side[-1].role != "assistant":
                raise BadRow(name, column, "does not end with the assistant")
        answers = chosen[-1].content, rejected[-1].content
        if isinstance(prompt, str) and shared:  # full conversations already contain the prompt's text
            return shared, answers
        if prompt is not None:
            if isinstance(prompt, str):
                prompt = {"role": "user", "content": prompt}
            turns = messages_of(name, self.prompt, prompt)
            if shared and shared != turns:
                raise BadRow(name, self.chosen, f"does not begin with {self.prompt}, nor is it one answer")
            return turns, answers
        if not shared:
            raise BadRow(name, self.prompt, "is null or missing")
        return shared, answers

    def _plain(
        self, name: str, prompt: object, chosen: str, rejected: str
    ) -> tuple[tuple[Message, ...] | str, tuple[str, str]]:
        if prompt is not None:
            return prompt_of(name, self.prompt, prompt, self.user_turn), (chosen, rejected)
        shared = os.path.commonprefix([chosen, rejected])  # noqa: RUF071
        end = max((i for i, character in enumerate(shared) if character.isspace()), default=0)
        if not shared[:end].strip():
            raise BadRow(name, self.prompt, f"is null or missing, and {self.chosen} and {self.rejected} share no text")
        return shared[:end], (chosen[end:], rejected[end:])
