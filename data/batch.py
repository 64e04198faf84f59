"""Tokenises many rows at once, with the ids that ``Renderer`` gives them one by one.

The chat template renders a chunk of conversations in one call, or runs once for many (``data/verbatim.py``). Each
distinct text is encoded once, in the threads of a fast tokenizer, while the next chunk is rendered. A row that is out
of the ordinary (a quoted special token, tokens that merge across the prompt's end, a fault) is tokenised by
``Renderer`` itself.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from data.completion import Completion, completion
from data.conversation import Conversation
from data.pieces import Pieces, encodes_pieces
from data.render import BREAK, PROBE, Renderer, Turn
from data.schema import BadRow, Message
from data.verbatim import Verbatim, copies_contents

TEXTS = 512  # that are encoded in one call
ENCODERS = ("__call__", "_encode_plus", "_batch_encode_plus")  # methods that turn texts into ids


class Item(NamedTuple):
    """A row to tokenise: its name, its prompt, and its responses as (column, text, turns of one with several)."""

    row: str
    prompt: Conversation
    responses: tuple[tuple[str, str, tuple[Message, ...]], ...]


class Rendered(NamedTuple):
    """The ids of a prompt and of the responses to it, uncut."""

    prompt: Sequence[int]
    responses: Sequence[Completion]


class _Start(NamedTuple):
    """A rendered prompt. ``tail`` is its end, from the last special token that no text before it can change."""

    text: str
    tail: str
    turns: list[Turn]


class _Plan(NamedTuple):
    """Positions in the texts to encode: of the prompt, of its tail, and of the tail before each response."""

    head: list[int]
    prompt: int
    tail: int
    joint: list[int]
    stop: int


class _Encoded(NamedTuple):
    """The ids of texts, end to end. ``stops`` has the places of each token that ends a response."""

    ids: array[int]
    bounds: Sequence[int]  # of T texts: T + 1 places
    stops: dict[int, list[int]]

    def stopped(self, stop: int, start: int, end: int) -> bool:
        """Whether ``stop`` is among the ids from ``start`` to ``end``."""
        places = self.stops[stop]
        number = bisect_left(places, start) if places else 0
        return number < len(places) and places[number] < end


def alone(renderer: Renderer, item: Item) -> Rendered:
    """One row, tokenised by itself. This is the definition of the ids of every row.

    Raises:
        BadRow: The row cannot be rendered.
    """
    row, prompt, responses = item
    ids = renderer.prompt(row, prompt)
    return Rendered(ids, [completion(renderer, row, name, prompt, ids, text, turns) for name, text, turns in responses])


class OneByOne:
    """Tokenises each row by itself: the definition, which tests and the benchmark compare ``BatchRenderer`` with."""

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer

    def __call__(self, chunks: Iterable[Sequence[Item]]) -> Iterator[Rendered | BadRow]:
        """The ids of every row of every chunk, in order; a ``BadRow`` for a row that cannot be rendered."""
        return (self.row(item) for chunk in chunks for item in chunk)

    def row(self, item: Item) -> Rendered | BadRow:
        """The ids of one row, or the ``BadRow`` that says why it has none."""
        try:
            return alone(self.renderer, item)
        except BadRow as bad:
            return bad


class BatchRenderer:
    """Tokenises chunks of rows. Every result equals that of ``OneByOne``.

    A slow tokenizer (one without a Rust backend) has no threads, so each row is tokenised by itself.

    Args:
        renderer: Renders and tokenises single rows.
    """

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer
        self._single = OneByOne(renderer)
        tokenizer: Any = renderer.tokenizer
        self._fast = isinstance(tokenizer, PreTrainedTokenizerFast)
        # a subclass that encodes in its own way is called as it wants to be called
        kinds = type(tokenizer).__mro__
        own = kinds[: kinds.index(PreTrainedTokenizerFast)] if self._fast else ()
        self._direct = self._fast and not any(name in vars(kind) for kind in own for name in ENCODERS)
        self._pieces = Pieces(tokenizer.backend_tokenizer) if self._direct and encodes_pieces(tokenizer) else None
        self._breaks = _text_breaks(tokenizer) if self._fast else {}
        self._stops = renderer.stop_tokens
        run = {opened: partial(renderer.render, opened=opened) for opened in (False, True)}
        verbatim = tokenizer.chat_template is not None and copies_contents(renderer.dated_template)
        self._render = {opened: Verbatim(render) if verbatim else render for opened, render in run.items()}

    def __call__(self, chunks: Iterable[Sequence[Item]]) -> Iterator[Rendered | BadRow]:
        """The ids of every row of every chunk, in order; a ``BadRow`` for a row that cannot be rendered."""
        if not self._fast:
            yield from self._single(chunks)
            return
        with ThreadPoolExecutor(1, "tokenise") as encoder:  # one thread: it alone uses the tokenizer's backend
            waiting: deque[Iterator[Rendered | BadRow]] = deque()
            for chunk in chunks:
                texts: dict[str, int] = {}
                plans = self._plans(chunk, texts)
                waiting.append(self._rows(chunk, plans, encoder.submit(self._encode, list(texts)), encoder))
                if len(waiting) > 1:
                    yield from waiting.popleft()
            while waiting:
                yield from waiting.popleft()

    def _rows(
        self, chunk: Sequence[Item], plans: Sequence[_Plan | None], encoded: Future[Any], encoder: ThreadPoolExecutor
    ) -> Iterator[Rendered | BadRow]:
        """The rows of a chunk, once its texts are encoded."""
        ids = encoded.result()
        for item, plan in zip(chunk, plans, strict=True):
            row = None if plan is None else self._assemble(plan, ids)
            yield encoder.submit(self._single.row, item).result() if row is None else row

    def _encode(self, texts: list[str]) -> _Encoded:
        """The ids of every text. A part of the texts at a time, because the tokenizer's own results are large."""
        tokenizer: Any = self.renderer.tokenizer
        ids, bounds = array("i"), [0]
        for start in range(0, len(texts), TEXTS):
            part = texts[start : start + TEXTS]
            tokenizer(PROBE, add_special_tokens=False)  # ends padding and truncation that an earlier caller wanted
            if self._pieces is not None:
                flat = self._pieces(part)
                bounds += (flat.bounds[1:] + len(ids)).tolist()
                ids.frombytes(flat.ids.tobytes())
                continue
            if self._direct:
                encodings = tokenizer.backend_tokenizer.encode_batch_fast(part, add_special_tokens=False)
                found = (encoding.ids for encoding in encodings)
            else:
                found = iter(tokenizer(part, add_special_tokens=False).input_ids)
            for mine in found:
                ids.extend(mine)
                bounds.append(len(ids))
        values = np.array(ids, np.int32)
        return _Encoded(ids, bounds, {stop: np.flatnonzero(values == stop).tolist() for stop in self._stops})

    def _plans(self, chunk: Sequence[Item], texts: dict[str, int]) -> list[_Plan | None]:
        """What to encode for each row. Fills ``texts``; None for a row that is tokenised alone."""
        renderer = self.renderer
        numbers: dict[Conversation, int] = {}
        asked = [numbers.setdefault(item.prompt, len(numbers)) for item in chunk]  # each prompt is hashed once a row
        starts = self._starts(chunk, asked)
        bodies = self._bodies(chunk, asked, starts)
        plans: list[_Plan | None] = []

        def place(text: str) -> int:
            return texts.setdefault(text, len(texts))

        for item, number in zip(chunk, asked, strict=True):
            start = starts[number]
            mine = [None if turns else bodies.get((number, text)) for _, text, turns in item.responses]
            whole = [body for body in mine if body is not None and BREAK not in body]
            if start is None or not start.text or BREAK in start.text or len(whole) < len(mine):
                plans.append(None)
                continue
            joint = [place(start.tail + body) for body in whole]
            stop = renderer.stop_of(item.prompt)
            plans.append(_Plan(renderer.head_of(item.prompt), place(start.text), place(start.tail), joint, stop))
        return plans

    def _starts(self, chunk: Sequence[Item], asked: Sequence[int]) -> dict[int, _Start | None]:
        """Every distinct prompt of a chunk by its number, rendered; None for one that cannot be."""
        renderer = self.renderer
        found: dict[int, _Start | None] = {}
        turns: dict[int, list[Turn]] = {}
        for (row, prompt, _), number in zip(chunk, asked, strict=True):
            if number in found:
                continue
            found[number] = None
            if isinstance(prompt, str):
                found[number] = self._start(_or_none(renderer.opened, row, prompt), [])
            elif not renderer.rendered and _of_texts(prompt):
                guarded = _or_none(renderer.guarded, row, prompt)
                turns.update({} if guarded is None else {number: guarded})
        opened = self._templates(list(turns.values()), opened=True)
        for (number, messages), text in zip(turns.items(), opened, strict=True):
            found[number] = self._start(text, messages)
        return found

    def _start(self, text: str | None, turns: list[Turn]) -> _Start | None:
        if text is None:
            return None
        cut = max((text.rfind(special) for special in self._breaks), default=-1)
        return _Start(text, text[max(0, cut) :], turns)

    def _bodies(
        self, chunk: Sequence[Item], asked: Sequence[int], starts: dict[int, _Start | None]
    ) -> dict[tuple[int, str], str]:
        """The scored text of every distinct response, without its stop token. Faulty ones are left out."""
        renderer = self.renderer
        found: dict[tuple[int, str], str] = {}
        waiting: dict[tuple[int, str], tuple[_Start, list[Turn]]] = {}
        for (row, prompt, responses), number in zip(chunk, asked, strict=True):
            start = starts[number]
            for column, text, _ in responses if start is not None else ():
                key = number, text
                if start is None or key in waiting or key in found:
                    continue
                guarded = _or_none(renderer.guard, row, column, renderer.unstopped(text))
                if guarded is None:
                    continue
                if isinstance(prompt, str):
                    found[key] = guarded
                else:
                    waiting[key] = start, [*start.turns, {"role": "assistant", "content": guarded}]
        wholes = self._templates([turns for _, turns in waiting.values()], opened=False)
        for (key, (start, _)), whole in zip(waiting.items(), wholes, strict=True):
            body = None if whole is None else _or_none(renderer.between, "", "", start.text, whole)
            found.update({} if body is None else {key: body})
        return found

    def _templates(self, conversations: list[list[Turn]], *, opened: bool) -> list[str | None]:
        """Every conversation, rendered; None for one that the chat template refuses."""
        renderer = self.renderer
        if renderer.tokenizer.chat_template is None:
            return [None] * len(conversations)
        try:
            return list(self._render[opened](conversations)) if conversations else []
        except TemplateError:
            return [_or_none(partial(renderer.template, opened=opened), "", turns) for turns in conversations]

    def _assemble(self, plan: _Plan, encoded: _Encoded) -> Rendered | None:
        """The ids of one row; None where only the definition can tell."""
        ids, bounds, _ = encoded
        prompt = ids[bounds[plan.prompt] : bounds[plan.prompt + 1]]
        tail = prompt if plan.tail == plan.prompt else ids[bounds[plan.tail] : bounds[plan.tail + 1]]
        size = len(tail)
        if tail is not prompt and (prompt[-size:] != tail or tail[0] not in self._breaks.values()):
            return None
        responses = []
        for joint in plan.joint:
            start, end = bounds[joint], bounds[joint + 1]
            middle = start + size
            if middle >= end or ids[start:middle] != tail or encoded.stopped(plan.stop, middle, end):
                return None
            response = ids[middle:end]
            response.append(plan.stop)
            responses.append(Completion(response, ()))
        whole = array("i", plan.head) + prompt if plan.head else prompt
        return Rendered(whole, responses) if whole else None


def _of_texts(prompt: tuple[Message, ...]) -> bool:
    """Whether a conversation names no tools and calls none."""
    return not any(turn.fields or turn.role == "tools" for turn in prompt)


def _or_none(function: Callable[..., Any], *arguments: object) -> Any:
    """The function's value, or None for a row that cannot be rendered; ``alone`` then names the fault."""
    try:
        return function(*arguments)
    except BadRow:
        return None


def _text_breaks(tokenizer: Any) -> dict[str, int]:
    """Special tokens, with their ids, after which a text's ids do not depend on what stands before them.

    A fast tokenizer finds these strings before it normalises or splits a text, and treats each piece between two of
    them by itself. A string that is part of a longer added token is left out: the longer one may take its place.
    """
    if tokenizer.split_special_tokens:
        return {}
    added = tokenizer.added_tokens_decoder
    contents = [token.content for token in added.values()]
    return {
        token.content: number
        for number, token in added.items()
        if token.special
        and not (token.normalized or token.single_word)
        and sum(token.content in content for content in contents) == 1
    }
