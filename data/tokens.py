"""Tokenised rows as flat arrays, which are cached on disk, split, ordered and packed.

Letters: P pairs, R rows of single sequences, C cost constraints.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track

from data.render import Conversation, Renderer
from data.schema import BadRow, PreferenceRow, SftRow
from data.split import Split, prompt_id, split_key, text_id
from data.token_report import TokenReport
from lit_safe.hashing import hash64
from lit_safe.types import ResponsesFrom

OnBadRow = Literal["error", "skip"]
SPLITS: tuple[Split, ...] = get_args(Split)
AUTHORS: tuple[ResponsesFrom, ...] = get_args(ResponsesFrom)

Ids = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Arrays = dict[str, npt.NDArray[Any]]
AnyRow = TypeVar("AnyRow", PreferenceRow, SftRow)


class Ragged(NamedTuple):
    """Lists of token ids of different lengths, stored end to end."""

    values: Ids
    offsets: Int64s  # [len + 1]

    @classmethod
    def of(cls, lists: Sequence[Sequence[int]]) -> Ragged:
        """Store ``lists`` end to end."""
        offsets = np.zeros(len(lists) + 1, dtype=np.int64)
        np.cumsum([len(ids) for ids in lists], out=offsets[1:])
        values = np.concatenate([np.asarray(ids, dtype=np.int32) for ids in lists] or [np.zeros(0, dtype=np.int32)])
        return cls(values, offsets)

    def at(self, index: int) -> Ids:
        """The ids of one list."""
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    @property
    def sizes(self) -> Int64s:
        """Length of each list."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class Prompts:
    """Every prompt once and uncut, for rollouts."""

    text: tuple[str, ...]
    ids: Ragged
    prompt_id: Int64s
    split: npt.NDArray[np.int8]  # index into SPLITS


@dataclass(frozen=True)
class TokenisedPairs:
    """P pairs. ``prompt`` is cut to fit beside the longer response; a response ends with its stop token."""

    name: tuple[str, ...]  # the rows' ids, for messages
    prompt: Ragged
    chosen: Ragged
    rejected: Ragged
    reward: npt.NDArray[np.float32]  # [P, 2] chosen, rejected
    cost: npt.NDArray[np.float32]  # [P, 2, C]
    pair_id: Int64s
    prompt_id: Int64s
    split: npt.NDArray[np.int8]  # index into SPLITS
    responses_from: npt.NDArray[np.int8]  # index into AUTHORS
    prompts: Prompts


@dataclass(frozen=True)
class TokenisedRows:
    """R single sequences. The fields have the same meaning as in TokenisedPairs."""

    name: tuple[str, ...]
    prompt: Ragged
    response: Ragged
    row_id: Int64s
    prompt_id: Int64s
    split: npt.NDArray[np.int8]
    prompts: Prompts


class Tokeniser:
    """Turns rows into ids, row by row, and counts the rows that it drops and cuts.

    A sequence has at most ``max_length`` tokens. The response is kept; the prompt is cut on its left, but keeps the
    template's opening of the assistant's turn. A response that is still too long is cut on its right and then has no
    stop token, so training does not teach the policy to end there. Both responses of a pair get the same prompt.

    Args:
        renderer: Renderer with the model's tokenizer.
        max_length: Maximum number of tokens of a whole sequence.
        on_bad_row: ``error`` raises on a row that cannot be rendered; ``skip`` counts it.

    Raises:
        ValueError: ``max_length`` leaves no room for a response.
    """

    def __init__(self, renderer: Renderer, max_length: int, on_bad_row: OnBadRow = "error") -> None:
        if max_length < renderer.opening + 2:
            raise ValueError(f"max_length={max_length} leaves no room beside the {renderer.opening} tokens of a prompt")
        self.renderer, self.max_length, self.on_bad_row = renderer, max_length, on_bad_row
        self.report = TokenReport()
        self._prompts: dict[int, tuple[str, list[int], Split]] = {}

    def pairs(
        self, rows: Sequence[PreferenceRow], splits_by_key: Mapping[int, Split], *, progress: bool = False
    ) -> TokenisedPairs:
        """Tokenise preference rows. Pairs with the same ids on both sides are dropped and counted."""
        kept: list[PreferenceRow] = []
        ids: list[tuple[Ids, Ids, Ids]] = []
        splits: list[Split] = []
        for row in _tracked(rows, "Tokenising pairs", progress):
            with_ids = self._tokenise(row.id, row.prompt, {"chosen": row.chosen, "rejected": row.rejected})
            if with_ids is None:
                continue
            prompt, (chosen, rejected), whole = with_ids
            if chosen == rejected:
                self.report.drop(row.id, "both responses are the same tokens (after truncation, if any)")
                continue
            splits.append(self._enter(row.prompt, whole, splits_by_key))
            ids.append((_ids(prompt), _ids(chosen), _ids(rejected)))
            kept.append(row)
        self.report.kept = len(kept)
        prompts, chosens, rejecteds = zip(*ids, strict=True) if ids else ((), (), ())
        constraints = len(kept[0].chosen_cost) if kept else 1
        return TokenisedPairs(
            name=tuple(row.id for row in kept),
            prompt=Ragged.of(prompts),
            chosen=Ragged.of(chosens),
            rejected=Ragged.of(rejecteds),
            reward=np.array([(r.chosen_reward, r.rejected_reward) for r in kept], np.float32).reshape(-1, 2),
            cost=np.array([(r.chosen_cost, r.rejected_cost) for r in kept], np.float32).reshape(-1, 2, constraints),
            pair_id=_text_ids((row.prompt, row.chosen, row.rejected) for row in kept),
            prompt_id=np.array([prompt_id(row.prompt) for row in kept], np.int64),
            split=_codes(SPLITS, splits),
            responses_from=_codes(AUTHORS, [row.responses_from for row in kept]),
            prompts=self._table(),
        )

    def rows(
        self, rows: Sequence[SftRow], splits_by_key: Mapping[int, Split], *, progress: bool = False
    ) -> TokenisedRows:
        """Tokenise single responses."""
        kept: list[SftRow] = []
        ids: list[tuple[Ids, Ids]] = []
        splits: list[Split] = []
        for row in _tracked(rows, "Tokenising rows", progress):
            with_ids = self._tokenise(row.id, row.prompt, {"response": row.response})
            if with_ids is None:
                continue
            prompt, (response,), whole = with_ids
            splits.append(self._enter(row.prompt, whole, splits_by_key))
            ids.append((_ids(prompt), _ids(response)))
            kept.append(row)
        self.report.kept = len(kept)
        prompts, responses = zip(*ids, strict=True) if ids else ((), ())
        return TokenisedRows(
            name=tuple(row.id for row in kept),
            prompt=Ragged.of(prompts),
            response=Ragged.of(responses),
            row_id=_text_ids((row.prompt, row.response) for row in kept),
            prompt_id=np.array([prompt_id(row.prompt) for row in kept], np.int64),
            split=_codes(SPLITS, splits),
            prompts=self._table(),
        )

    def _tokenise(
        self, row: str, prompt: Conversation, texts: Mapping[str, str]
    ) -> tuple[list[int], list[list[int]], list[int]] | None:
        """The cut prompt, the cut responses, and the whole prompt; None if the row is skipped."""
        try:
            whole = self.renderer.prompt(row, prompt)
            responses = [self.renderer.response(row, column, prompt, whole, text) for column, text in texts.items()]
        except BadRow as bad:
            if self.on_bad_row == "error":
                raise
            self.report.drop(row, f"column {bad.column!r} {bad.reason}")
            return None
        mark = self.renderer.mark_in(prompt)
        if mark is not None:
            self.report.note(
                row,
                f"a prompt with {mark!r} in it, as if a chat template had made it; it is read as quoted text, and "
                "data.init_args.rendered: true reads it as a template's output",
            )
        room = self.max_length - min(len(whole), self.renderer.opening)
        if any(len(response) > room for response in responses):
            self.report.shorten(row, "a response cut (no stop token is scored there)")
            responses = [response[:room] for response in responses]
        size = self.max_length - max(map(len, responses))
        if len(whole) > size:
            self.report.shorten(row, "the prompt cut")
        return self.renderer.cut_prompt(whole, size), responses, whole

    def _enter(self, prompt: Conversation, whole: list[int], splits_by_key: Mapping[int, Split]) -> Split:
        """Store the prompt for rollouts and return its split."""
        identity = prompt_id(prompt)
        if identity not in self._prompts:
            cut = self.renderer.cut_prompt(whole, self.max_length)
            self._prompts[identity] = (plain_text(prompt), cut, splits_by_key[split_key(prompt)])
        return self._prompts[identity][2]

    def _table(self) -> Prompts:
        entries = self._prompts.values()
        return Prompts(
            text=tuple(text for text, _, _ in entries),
            ids=Ragged.of([ids for _, ids, _ in entries]),
            prompt_id=np.array(list(self._prompts), np.int64),
            split=_codes(SPLITS, [split for _, _, split in entries]),
        )


def plain_text(prompt: Conversation) -> str:
    """A prompt as plain text: a single user turn as it is, several turns with their roles named."""
    if isinstance(prompt, str):
        return prompt
    turns = [turn for turn in prompt if turn.role != "system"]
    if len(turns) == 1:
        return turns[0].content
    return "\n\n".join(f"{turn.role}: {turn.content}" for turn in turns)


Tokenised = TypeVar("Tokenised", bound="TokenisedPairs | TokenisedRows")


def to_arrays(tokenised: TokenisedPairs | TokenisedRows) -> tuple[Arrays, dict[str, list[str]]]:
    """Arrays by name and texts by name, for storage without pickle."""
    arrays: Arrays = {}
    texts: dict[str, list[str]] = {}
    for owner, prefix in ((tokenised, ""), (tokenised.prompts, "prompts.")):
        for entry in fields(owner):
            value = getattr(owner, entry.name)
            if isinstance(value, Ragged):
                arrays[f"{prefix}{entry.name}.values"], arrays[f"{prefix}{entry.name}.offsets"] = value
            elif isinstance(value, tuple):
                texts[prefix + entry.name] = list(value)
            elif isinstance(value, np.ndarray):
                arrays[prefix + entry.name] = value
    return arrays, texts


def from_arrays(kind: type[Tokenised], arrays: Mapping[str, Any], texts: Mapping[str, list[str]]) -> Tokenised:
    """The inverse of ``to_arrays``."""

    def read(owner: type, prefix: str) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for entry in fields(owner):
            key = prefix + entry.name
            if key in texts:
                values[entry.name] = tuple(texts[key])
            elif key in arrays:
                values[entry.name] = arrays[key]
            elif f"{key}.values" in arrays:
                values[entry.name] = Ragged(arrays[f"{key}.values"], arrays[f"{key}.offsets"])
        return values

    return kind(prompts=Prompts(**read(Prompts, "prompts.")), **read(kind, ""))


def _tracked(rows: Sequence[AnyRow], what: str, progress: bool) -> Iterator[AnyRow]:
    yield from track(rows, what, disable=not progress, console=Console(stderr=True))


def _ids(ids: Sequence[int]) -> Ids:
    return np.asarray(ids, dtype=np.int32)


def _codes(names: Sequence[str], values: Iterable[str]) -> npt.NDArray[np.int8]:
    return np.array([names.index(value) for value in values], np.int8)


def _text_ids(rows: Iterable[tuple[Conversation, *tuple[str, ...]]]) -> Int64s:
    """A hash of each row's texts, and of the number of earlier copies if there are any, so that ids are distinct.

    An id decides a row's place in an epoch, its place in a capped evaluation, and its random draw for sampled labels,
    so copies of a row need different ids. The id does not depend on which response is chosen: runs that order pairs in
    different ways train on the same pairs in the same order and are evaluated on the same pairs.
    """
    seen: Counter[int] = Counter()
    ids = []
    for prompt, *responses in rows:
        text = text_id(prompt, *responses)
        ids.append(hash64("again", text, seen[text]) if seen[text] else text)
        seen[text] += 1
    return np.array(ids, np.int64)
