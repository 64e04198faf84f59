"""Tokenised rows as flat arrays, which are cached on disk, split, ordered and packed.

Letters: P pairs, R rows of single sequences, C cost constraints.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from data.split import Split
from lit_safe.types import ResponsesFrom

SPLITS: tuple[Split, ...] = get_args(Split)
AUTHORS: tuple[ResponsesFrom, ...] = get_args(ResponsesFrom)

Ids = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Arrays = dict[str, npt.NDArray[Any]]


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


class Growing:
    """Lists of token ids, appended one by one and stored end to end."""

    def __init__(self) -> None:
        self._values, self._offsets = array("i"), array("q", [0])

    def append(self, ids: Sequence[int]) -> None:
        """Store one more list."""
        self._values.extend(ids)
        self._offsets.append(len(self._values))

    def ragged(self) -> Ragged:
        """All lists. It shares this object's memory, so nothing may be appended afterwards."""
        values = np.frombuffer(self._values, np.int32) if len(self._values) else np.zeros(0, np.int32)
        return Ragged(values, np.frombuffer(self._offsets, np.int64))


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
    chosen_unscored: Ragged  # starts and ends of the parts of a response of several turns that are not the assistant's
    rejected_unscored: Ragged
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
    response_unscored: Ragged
    row_id: Int64s
    prompt_id: Int64s
    split: npt.NDArray[np.int8]
    prompts: Prompts


@dataclass(frozen=True)
class TokenisedRefusals(TokenisedRows):
    """R sequences of DeRTa. ``harmful`` is what may stand before the response of a PREFIX row, without a stop token."""

    harmful: Ragged
    part: npt.NDArray[np.int8]  # PLAIN, PREFIX or TRANSITION


PLAIN, PREFIX, TRANSITION = range(3)

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
