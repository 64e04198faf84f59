"""Preference data in TRL's formats: prompt (explicit or implicit), chosen and rejected, plain or conversational."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from data.schema import BadRow, Message, Row, check_text
from data.sources.files import Record
from data.sources.labels import LabelColumns
from data.sources.messages import messages_of, prompt_of, response_of, with_tools
from data.sources.tables import Rows, table
from lit_safe.types import ResponsesFrom


class TRL:
    """A dataset in one of TRL's four preference formats. The format is detected for each row.

    Explicit prompt: ``prompt`` is a column beside two answers. Implicit prompt (no prompt column, or conversations that
    contain it): the prompt is the common beginning of both sides. In plain text the answers begin at the last white
    space before the first difference, so no word is cut. Turns may also have the keys ``from``/``value``.

    A response begins and ends with a turn of the assistant. It may have several turns: those of the assistant are
    scored, and the turns of the user and of tools between them are not.

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
        tools: Column of the functions that the assistant may call (JSON schemas), for the chat template; or None.
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
        tools: str | None = "tools",
        licence: str = "unknown",
        responses_from: ResponsesFrom = "unknown",
        config: str | None = None,
    ) -> None:
        self.table = table(path, split, revision, data_dir, config=config)
        self.prompt, self.chosen, self.rejected = prompt, chosen, rejected
        self.chosen_is = chosen_is
        self.split_group = split_group
        self.user_turn, self.tools = user_turn, tools
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
            "tools": str(self.tools),
            **self.labels.describe(),
            "responses_from": self.responses_from,
        }

    def __iter__(self) -> Iterator[Row | BadRow]:
        return self.table.parsed(self._row)

    def _row(self, name: str, record: Record) -> Row:
        prompt, chosen, rejected = (record.get(column) for column in (self.prompt, self.chosen, self.rejected))
        group = None if self.split_group is None else record.get(self.split_group)
        context: tuple[Message, ...] | str
        turns: tuple[tuple[Message, ...], tuple[Message, ...]] = (), ()
        if isinstance(chosen, list | dict):
            sides = messages_of(name, self.chosen, chosen), messages_of(name, self.rejected, rejected)
            context, sides = self._conversation(name, prompt, *sides)
            (first, more), (second, others) = (
                response_of(name, column, side)
                for column, side in zip((self.chosen, self.rejected), sides, strict=True)
            )
            answers, turns = (first, second), (more, others)
        else:
            texts = check_text(name, self.chosen, chosen), check_text(name, self.rejected, rejected)
            context, answers = self._plain(name, prompt, *texts)
        return Row(
            name,
            with_tools(name, context, record, self.tools),
            (
                self.labels.response(name, record, 0, check_text(name, self.chosen, answers[0]), turns[0]),
                self.labels.response(name, record, 1, check_text(name, self.rejected, answers[1]), turns[1]),
            ),
            better=0 if self.chosen_is == "better" else None,
            safer=0 if self.chosen_is == "safer" else None,
            responses_from=self.responses_from,
            split_group=None if group is None else check_text(name, str(self.split_group), group),
        )

    def _conversation(
        self, name: str, prompt: object, chosen: tuple[Message, ...], rejected: tuple[Message, ...]
    ) -> tuple[tuple[Message, ...], tuple[tuple[Message, ...], tuple[Message, ...]]]:
        """The prompt, and the turns of both responses."""
        for column, side in ((self.chosen, chosen), (self.rejected, rejected)):
            if side[-1].role != "assistant":
                raise BadRow(name, column, "does not end with the assistant")
        whole = chosen[0].role != "assistant"  # whole conversations already contain the prompt
        if prompt is None or (isinstance(prompt, str) and whole):
            return self._shared(name, chosen, rejected)
        turns = messages_of(
            name, self.prompt, {"role": "user", "content": prompt} if isinstance(prompt, str) else prompt
        )
        sides = []
        for column, side in ((self.chosen, chosen), (self.rejected, rejected)):
            rest = side[len(turns) :] if side[: len(turns)] == turns else side
            if not rest or rest[0].role != "assistant":
                raise BadRow(name, column, f"begins neither with {self.prompt} nor with the assistant's answer")
            sides.append(rest)
        return turns, (sides[0], sides[1])

    def _shared(
        self, name: str, chosen: tuple[Message, ...], rejected: tuple[Message, ...]
    ) -> tuple[tuple[Message, ...], tuple[tuple[Message, ...], tuple[Message, ...]]]:
        """The beginning that both conversations share, up to a turn of the assistant, and the rest of both."""
        most = min(len(chosen), len(rejected)) - 1
        size = next((i for i in range(most) if chosen[i] != rejected[i]), most)
        while size and not chosen[size].role == rejected[size].role == "assistant":
            size -= 1
        if not size:
            raise BadRow(name, self.prompt, f"is null or missing, and {self.chosen} and {self.rejected} share no turn")
        return chosen[:size], (chosen[size:], rejected[size:])

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
