"""Turns rows into arrays of token ids, and counts the rows that it drops and cuts."""

from __future__ import annotations

from array import array
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Literal, NamedTuple, Protocol, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import track

from data.batch import BatchRenderer, Item, OneByOne
from data.completion import Completion
from data.conversation import Conversation, plain_text
from data.render import Renderer
from data.schema import BadRow, HarmfulRow, Message, PreferenceRow, SftRow
from data.split import Split, keys_of
from data.token_report import TokenReport
from data.tokens import (
    AUTHORS,
    PLAIN,
    PREFIX,
    SPLITS,
    TRANSITION,
    Growing,
    Prompts,
    TokenisedPairs,
    TokenisedRefusals,
    TokenisedRows,
)
from lit_safe.hashing import hash64

OnBadRow = Literal["error", "skip"]
OneRow = TypeVar("OneRow", covariant=True)
AnyRow = TypeVar("AnyRow", PreferenceRow, SftRow)
Responses = tuple[tuple[str, str, tuple[Message, ...]], ...]  # (column, text, turns) of each response of a row
CHUNK = 4096  # rows that are rendered in one call of the chat template, and encoded in one call of the tokenizer


class Rows(Protocol[OneRow]):
    """Rows that are read one after the other; a list of them, or sources that are read again."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[OneRow]: ...


class _Ids(NamedTuple):
    """A row's ids: the whole prompt, the prompt and the responses as they are kept."""

    whole: Sequence[int]
    prompt: Sequence[int]
    responses: Sequence[Completion]


class Tokeniser:
    """Turns rows into ids and counts the rows that it drops and cuts.

    A sequence has at most ``max_length`` tokens. The response is kept; the prompt is cut on its left, but keeps the
    template's opening of the assistant's turn. A response that is still too long is cut on its right and then has no
    stop token, so training does not teach the policy to end there. Both responses of a pair get the same prompt.

    Args:
        renderer: Renderer with the model's tokenizer.
        max_length: Maximum number of tokens of a whole sequence.
        on_bad_row: ``error`` raises on a row that cannot be rendered; ``skip`` counts it.
        batches: Tokenises chunks of rows; ``OneByOne`` is the slow definition of ``BatchRenderer``.

    Raises:
        ValueError: ``max_length`` leaves no room for a response.
    """

    def __init__(
        self,
        renderer: Renderer,
        max_length: int,
        on_bad_row: OnBadRow = "error",
        batches: Callable[[Renderer], BatchRenderer | OneByOne] = BatchRenderer,
    ) -> None:
        if max_length < renderer.opening + 2:
            raise ValueError(f"max_length={max_length} leaves no room beside the {renderer.opening} tokens of a prompt")
        self.renderer, self.max_length, self.on_bad_row = renderer, max_length, on_bad_row
        self.report = TokenReport()
        self._batches = batches(renderer)
        self._prompts = _PromptTable()

    def pairs(
        self, rows: Rows[PreferenceRow], splits_by_key: Mapping[int, Split], *, progress: bool = False
    ) -> TokenisedPairs:
        """Tokenise preference rows. Pairs with the same ids on both sides are dropped and counted."""
        prompts, chosen, rejected, *unscored = (Growing() for _ in range(5))
        reward, cost, author = array("d"), array("d"), array("b")
        entries = _Entries(self._prompts, splits_by_key)
        constraints = 1
        tracked = _tracked(rows, "Tokenising pairs", progress)
        for row, ids in self._tokenised(
            tracked, lambda row: (("chosen", row.chosen, row.turns[0]), ("rejected", row.rejected, row.turns[1]))
        ):
            if ids.responses[0] == ids.responses[1]:
                self.report.drop(row.id, "both responses are the same tokens (after truncation, if any)")
                continue
            entries.append(row.id, row.prompt, (row.chosen, row.rejected), self._on_its_own(ids))
            prompts.append(ids.prompt)
            for lists, places, response in zip((chosen, rejected), unscored, ids.responses, strict=True):
                lists.append(response.ids)
                places.append(response.unscored)
            reward.extend((row.chosen_reward, row.rejected_reward))
            cost.extend((*row.chosen_cost, *row.rejected_cost))
            constraints = len(row.chosen_cost)
            author.append(AUTHORS.index(row.responses_from))
        self.report.kept = len(entries.name)
        return TokenisedPairs(
            name=tuple(entries.name),
            prompt=prompts.ragged(),
            chosen=chosen.ragged(),
            rejected=rejected.ragged(),
            chosen_unscored=unscored[0].ragged(),
            rejected_unscored=unscored[1].ragged(),
            reward=np.array(reward, np.float32).reshape(-1, 2),
            cost=np.array(cost, np.float32).reshape(-1, 2, constraints),
            pair_id=np.array(entries.text_id, np.int64),
            prompt_id=np.array(entries.prompt_id, np.int64),
            split=np.array(entries.split, np.int8),
            responses_from=np.array(author, np.int8),
            prompts=self._prompts.table(),
        )

    def rows(self, rows: Rows[SftRow], splits_by_key: Mapping[int, Split], *, progress: bool = False) -> TokenisedRows:
        """Tokenise single responses."""
        prompts, responses, unscored = Growing(), Growing(), Growing()
        entries = _Entries(self._prompts, splits_by_key)
        tracked = _tracked(rows, "Tokenising rows", progress)
        for row, ids in self._tokenised(tracked, lambda row: (("response", row.response, row.turns),)):
            entries.append(row.id, row.prompt, (row.response,), self._on_its_own(ids))
            prompts.append(ids.prompt)
            responses.append(ids.responses[0].ids)
            unscored.append(ids.responses[0].unscored)
        self.report.kept = len(entries.name)
        return TokenisedRows(
            name=tuple(entries.name),
            prompt=prompts.ragged(),
            response=responses.ragged(),
            response_unscored=unscored.ragged(),
            row_id=np.array(entries.text_id, np.int64),
            prompt_id=np.array(entries.prompt_id, np.int64),
            split=np.array(entries.split, np.int8),
            prompts=self._prompts.table(),
        )

    def refusals(
        self, rows: Rows[SftRow], splits_by_key: Mapping[int, Split], parts: Collection[int], *, progress: bool = False
    ) -> TokenisedRefusals:
        """Tokenise single responses, and each ``HarmfulRow`` as one row for each of ``parts``.

        A PREFIX row has the safe response, a TRANSITION row the harmful one. Other rows are PLAIN.
        """
        prompts, responses, unscored, harmful = (Growing() for _ in range(4))
        entries, part_of = _Entries(self._prompts, splits_by_key), array("b")
        tracked = _tracked(rows, "Tokenising rows", progress)
        for row, ids in self._tokenised(tracked, _both_responses):
            sides: list[tuple[int, Completion, Sequence[int], tuple[str, ...]]] = [
                (PLAIN, ids.responses[0], (), (row.response,))
            ]
            if isinstance(row, HarmfulRow):
                safe, unsafe = ids.responses
                # a response that was cut has no stop token
                stops = len(unsafe.ids) > 0 and unsafe.ids[-1] == self.renderer.stop_of(row.prompt)
                whole = unsafe.ids[:-1] if stops else unsafe.ids
                both = row.response, row.harmful
                sides = [(PREFIX, safe, whole, (*both, "prefix")), (TRANSITION, unsafe, (), (*both, "transition"))]
            for part, response, before, texts in sides:
                if part != PLAIN and part not in parts:
                    continue
                entries.append(row.id, row.prompt, texts, self._on_its_own(ids))
                prompts.append(ids.prompt)
                responses.append(response.ids)
                unscored.append(response.unscored)
                harmful.append(before)
                part_of.append(part)
        self.report.kept = len(entries.name)
        return TokenisedRefusals(
            name=tuple(entries.name),
            prompt=prompts.ragged(),
            response=responses.ragged(),
            response_unscored=unscored.ragged(),
            row_id=np.array(entries.text_id, np.int64),
            prompt_id=np.array(entries.prompt_id, np.int64),
            split=np.array(entries.split, np.int8),
            prompts=self._prompts.table(),
            harmful=harmful.ragged(),
            part=np.array(part_of, np.int8),
        )

    def _tokenised(
        self, rows: Iterable[AnyRow], responses: Callable[[AnyRow], Responses]
    ) -> Iterator[tuple[AnyRow, _Ids]]:
        """Every row that can be rendered, with its ids. Counts the others, and the rows that lose tokens."""
        waiting: deque[AnyRow] = deque()

        def chunks() -> Iterator[list[Item]]:
            source = iter(rows)
            while chunk := list(islice(source, CHUNK)):
                waiting.extend(chunk)
                yield [Item(row.id, row.prompt, responses(row)) for row in chunk]

        for rendered in self._batches(chunks()):
            row = waiting.popleft()
            if isinstance(rendered, BadRow):
                if self.on_bad_row == "error":
                    raise rendered
                self.report.drop(row.id, f"column {rendered.column!r} {rendered.reason}")
                continue
            self._note_mark(row.id, row.prompt)
            yield row, self._cut(row.id, *rendered)

    def _cut(self, row: str, whole: Sequence[int], responses: Sequence[Completion]) -> _Ids:
        """The ids that fit into ``max_length``."""
        if len(whole) + max([len(response.ids) for response in responses]) <= self.max_length:
            return _Ids(whole, whole, responses)
        room = self.max_length - min(len(whole), self.renderer.opening)
        if any(len(response.ids) > room for response in responses):
            self.report.shorten(row, "a response cut (no stop token is scored there)")
            responses = [response.cut(room) for response in responses]
        size = self.max_length - max(len(response.ids) for response in responses)
        if len(whole) > size:
            self.report.shorten(row, "the prompt cut")
        return _Ids(whole, self.renderer.cut_prompt(whole, size), responses)

    def _on_its_own(self, ids: _Ids) -> Sequence[int]:
        """The prompt for rollouts, which is cut only to ``max_length``."""
        return self.renderer.cut_prompt(ids.whole, self.max_length)

    def _note_mark(self, row: str, prompt: Conversation) -> None:
        mark = self.renderer.mark_in(prompt)
        if mark is not None:
            self.report.note(
                row,
                f"a prompt with {mark!r} in it, as if a chat template had made it; it is read as quoted text, and "
                "data.init_args.rendered: true reads it as a template's output",
            )


class _PromptTable:
    """Every prompt once, in the order of first appearance."""

    def __init__(self) -> None:
        self.split_of: dict[int, int] = {}  # by prompt id: index into SPLITS
        self.text: list[str] = []
        self.ids = Growing()

    def table(self) -> Prompts:
        """The prompts as arrays."""
        return Prompts(
            text=tuple(self.text),
            ids=self.ids.ragged(),
            prompt_id=np.array(list(self.split_of), np.int64),
            split=np.array(list(self.split_of.values()), np.int8),
        )


class _Entries:
    """What the rows of pairs and the rows of single responses have in common.

    A row's ``text_id`` is a hash of its texts, and of the number of earlier copies if there are any, so that ids are
    distinct. An id decides a row's place in an epoch, its place in a capped evaluation, and its random draw for sampled
    labels, so copies of a row need different ids. The id does not depend on which response is chosen: runs that order
    pairs in different ways train on the same pairs in the same order and are evaluated on the same pairs.
    """

    def __init__(self, prompts: _PromptTable, splits_by_key: Mapping[int, Split]) -> None:
        self.prompts, self.splits_by_key = prompts, splits_by_key
        self.name: list[str] = []
        self.text_id, self.prompt_id, self.split = array("q"), array("q"), array("b")
        self._seen: Counter[int] = Counter()

    def append(self, name: str, prompt: Conversation, responses: Sequence[str], ids: Sequence[int]) -> None:
        """Store a row; ``ids`` are those of its prompt for rollouts, which are stored once for each prompt."""
        keys = keys_of(prompt)
        identity, text = keys.id, keys.text_id(*responses)
        if identity not in self.prompts.split_of:
            self.prompts.split_of[identity] = SPLITS.index(self.splits_by_key[keys.split])
            self.prompts.text.append(plain_text(prompt))
            self.prompts.ids.append(ids)
        self.name.append(name)
        self.prompt_id.append(identity)
        self.split.append(self.prompts.split_of[identity])
        again = self._seen[text]
        self._seen[text] += 1
        self.text_id.append(hash64("again", text, again) if again else text)


def _both_responses(row: SftRow) -> Responses:
    """The response of a row, and its harmful one if it has one."""
    own = ("response", row.response, row.turns)
    return (own, ("harmful", row.harmful, ())) if isinstance(row, HarmfulRow) else (own,)


def _tracked(rows: Rows[AnyRow], what: str, progress: bool) -> Iterator[AnyRow]:
    console = Console(stderr=True)
    yield from track(rows, what, len(rows), disable=not (progress and console.is_terminal), console=console)
