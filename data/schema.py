"""Validated rows, independent of the dataset's column names.

A source turns its raw rows into ``Row``s; an annotator turns a ``Row`` into a ``PreferenceRow`` with rewards and costs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from lit_safe.types import ResponsesFrom

MAX_CHARACTERS = 100_000  # of one text: a longer one is taken for a parsing error


class BadRow(ValueError):
    """A row that cannot be used. The message names the row, the column, and the fault.

    Attributes:
        row: Which row, as ``<source>:<number or id>``.
        column: The faulty column.
        reason: A short phrase, the same for every row with this fault. A report counts rows by it.
    """

    def __init__(self, row: str, column: str, reason: str) -> None:
        super().__init__(f"row {row}, column {column!r}: {reason}")
        self.row, self.column, self.reason = row, column, reason


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: ``system``, ``user``, ``assistant`` or ``tool``. ``tools`` is no turn: its content is the JSON list of the
            functions that the assistant may call. It comes first, and a chat template gets it as ``tools``.
        content: The text.
        fields: The turn's other keys (``tool_calls``, ``tool_call_id``, ``name``) as a JSON object; empty without any.
    """

    role: str
    content: str
    fields: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The turn as JSON values."""
        return {"role": self.role, "content": self.content, **(json.loads(self.fields) if self.fields else {})}


@dataclass(frozen=True, slots=True)
class Response:
    """A response with all labels that its dataset has for it; None for those that it lacks.

    ``severity`` is the dataset's ordinal or graded harm, ``scores`` its numeric columns by name. ``turns`` has the
    turns of a response of several, or of one that calls tools; ``text`` is then their plain text.
    """

    text: str
    safe: bool | None = None
    severity: float | None = None
    scores: dict[str, float] = field(default_factory=dict)
    turns: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """A validated prompt with two responses, in the dataset's own order.

    Attributes:
        id: ``<source>:<number or id>``, for messages.
        prompt: The conversation up to the response, or plain text if the dataset has no roles (never templated then).
        responses: Both responses; their position implies no preference.
        better: Index of the more helpful response, None if unknown.
        safer: Index of the less harmful response, None if unknown.
        responses_from: Who wrote the responses.
        split_group: The key that decides the split in place of the prompt (XSTest's homonym group), or None.

    Raises:
        BadRow: If ``safer`` names a response flagged unsafe while the other is flagged safe.
    """

    id: str
    prompt: tuple[Message, ...] | str
    responses: tuple[Response, Response]
    better: int | None = None
    safer: int | None = None
    responses_from: ResponsesFrom = "unknown"
    split_group: str | None = None

    def __post_init__(self) -> None:
        if self.safer is not None:
            flag, other = self.responses[self.safer].safe, self.responses[1 - self.safer].safe
            if flag is False and other is True:
                raise BadRow(self.id, "safer", "names the unsafe response as the safer one")


@dataclass(frozen=True, slots=True)
class PreferenceRow:
    """An ordered and labelled pair. ``costs`` have one entry per constraint; NaN means unknown.

    ``turns`` has the turns of both responses, as in ``Response``.
    """

    id: str
    prompt: tuple[Message, ...] | str
    chosen: str
    rejected: str
    chosen_reward: float
    rejected_reward: float
    chosen_cost: tuple[float, ...]
    rejected_cost: tuple[float, ...]
    responses_from: ResponsesFrom
    split_group: str | None = None
    turns: tuple[tuple[Message, ...], tuple[Message, ...]] = ((), ())


@dataclass(frozen=True, slots=True)
class SftRow:
    """A prompt with one response for fine-tuning. The fields have the same meaning as in ``Row``."""

    id: str
    prompt: tuple[Message, ...] | str
    response: str
    split_group: str | None = None
    turns: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class HarmfulRow(SftRow):
    """A prompt with a safe response to imitate, and a harmful response beside it."""

    harmful: str = ""


@runtime_checkable
class Source(Protocol):
    """A dataset of pairs. The constructor does no I/O. Iterating reads and validates, with the same rows each time."""

    @property
    def licence(self) -> str:
        """Licence of the data, as a report names it."""

    def describe(self) -> dict[str, str]:
        """Named inputs of the cache key: all that decides the rows (files with hashes, hub revision, options)."""

    def __iter__(self) -> Iterator[Row | BadRow]:
        """Every row in order; a ``BadRow`` in place of an unusable one."""


@runtime_checkable
class SftSource(Protocol):
    """A dataset of responses for fine-tuning; otherwise like ``Source``."""

    @property
    def licence(self) -> str:
        """Licence of the data, as a report names it."""

    def describe(self) -> dict[str, str]:
        """Named inputs of the cache key."""

    def __iter__(self) -> Iterator[SftRow | BadRow]:
        """Every row in order; a ``BadRow`` in place of an unusable one."""


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A prompt alone. ``id`` and ``prompt`` have the same meaning as in ``Row``.

    Attributes:
        category: The kind of prompt by which an evaluation reports shares, such as the kind of harm; None if the
            dataset has none.
        harmful: Whether a good answer is a refusal. True: a response counts as unsafe or not. False: a refusal counts
            as over-refusal. None: the dataset does not say.
    """

    id: str
    prompt: tuple[Message, ...] | str
    category: str | None = None
    harmful: bool | None = None


@runtime_checkable
class PromptSource(Protocol):
    """A dataset of prompts without responses; otherwise like ``Source``."""

    @property
    def licence(self) -> str:
        """Licence of the data, as a report names it."""

    def describe(self) -> dict[str, str]:
        """Named inputs that decide the prompts."""

    def __iter__(self) -> Iterator[PromptRow | BadRow]:
        """Every prompt in order; a ``BadRow`` in place of an unusable one."""


@runtime_checkable
class Annotator(Protocol):
    """Gives both responses of a row a reward (Bradley-Terry nats) and costs (declared units, > 0 unsafe)."""

    @property
    def constraints(self) -> tuple[str, ...]:
        """Names of the C cost constraints."""

    def rewards(self, row: Row) -> tuple[float, float]:
        """Rewards of responses 0 and 1; NaN if the row has none. Raises BadRow on a required but unusable column."""

    def costs(self, row: Row) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """C costs of response 0 and C of response 1; NaN if the row has none. Raises BadRow as above."""


def check_text(row: str, column: str, value: object) -> str:
    """``value`` as usable text. Raises BadRow if it is not a string, empty, far too long, or not valid Unicode."""
    if value is None:
        raise BadRow(row, column, "is null or missing")
    if not isinstance(value, str):
        raise BadRow(row, column, f"is {type(value).__name__}, not text")
    if not value.strip():
        raise BadRow(row, column, "is empty")
    if len(value) > MAX_CHARACTERS:
        raise BadRow(row, column, f"has over {MAX_CHARACTERS:,} characters")
    if value.isascii():
        return value
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRow(row, column, "holds a lone surrogate") from None
    return value


def check_flag(row: str, column: str, value: object) -> bool:
    """``value`` as a flag (a bool, or the integers 0 and 1). Raises BadRow otherwise."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    raise BadRow(row, column, "is null or missing" if value is None else f"is {type(value).__name__}, not a flag")


def check_number(row: str, column: str, value: object) -> float:
    """``value`` as a finite number. Raises BadRow otherwise."""
    if value is None:
        raise BadRow(row, column, "is null or missing")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRow(row, column, f"is {type(value).__name__}, not a number")
    try:
        number = float(value)
    except OverflowError:  # an integer too large for a float
        number = math.inf
    if not math.isfinite(number):
        raise BadRow(row, column, "is not finite")
    return number


def check_choice(row: str, column: str, value: object) -> int:
    """``value`` as the index 0 or 1 of a response. Raises BadRow otherwise."""
    if isinstance(value, int) and not isinstance(value, bool) and value in (0, 1):
        return value
    raise BadRow(row, column, "is null or missing" if value is None else "is not 0 or 1")
