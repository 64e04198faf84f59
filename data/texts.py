"""Pairs as texts, by split, for scorers. Nothing is tokenised, so no model is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data.conversation import plain_text
from data.schema import Message, PreferenceRow, Source
from data.split import Split, assign, placed, prompt_id, split_key


@dataclass(frozen=True, slots=True)
class TextPair:
    """An ordered and labelled pair with its prompt as plain text.

    Attributes:
        prompt_id: The cluster of standard errors.
        text: The prompt as plain text, as a rollout's cost function receives it.
        row: The pair.
        evaluation_only: Whether training must not read the prompt, whichever file it is copied into.
    """

    prompt_id: int
    text: str
    row: PreferenceRow
    evaluation_only: bool = False

    @property
    def turns(self) -> list[dict[str, Any]] | str:
        """The prompt as JSON values: a list of turns, or plain text if the dataset has no roles."""
        prompt = self.row.prompt
        return prompt if isinstance(prompt, str) else [turn.to_dict() for turn in prompt]

    @property
    def responses(self) -> tuple[list[dict[str, Any]] | str, ...]:
        """The chosen and the rejected response as JSON values: texts, or lists of turns if one of them has several."""
        texts = self.row.chosen, self.row.rejected
        if not any(self.row.turns):
            return texts
        sides = zip(texts, self.row.turns, strict=True)
        return tuple([turn.to_dict() for turn in turns or (Message("assistant", text),)] for text, turns in sides)


def text_pairs(rows: Sequence[PreferenceRow], sources: Sequence[Source], split: Split | None) -> list[TextPair]:
    """The pairs of one split, or all, in ``rows``' order. ``sources`` tell which prompts are for evaluation only."""
    known = placed(sources)
    splits = assign(rows, known)
    keys = [split_key(row.prompt) for row in rows]
    return [
        TextPair(prompt_id(row.prompt), plain_text(row.prompt), row, known.get(key, "train") != "train")
        for key, row in zip(keys, rows, strict=True)
        if split is None or splits[key] == split
    ]
