"""Encodes texts by pieces that are remembered: a piece that stood in an earlier text is not encoded again.

Byte-level BPE tokenizers split a text by a regular expression and encode each part by itself. None of the expressions
in ``KNOWN`` lets a part go on over a space before a letter, or from a letter to a full stop or a comma. A text that is
cut at such places therefore has the ids of its pieces, end to end. English texts repeat most pieces, which are words.

Letters: T texts, P pieces of all texts, N ids of all texts.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from tokenizers.models import BPE

from data.tokens import Ids, Int64s

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
KNOWN = frozenset({GPT2, _LLAMA3.format(digits="{1,3}"), _LLAMA3.format(digits="")})  # GPT-2, Llama 3, Qwen 2
# A piece ends before a space that stands between a printable character and a letter, and before a mark after a letter.
# The first alternative is the most frequent case of the second.
PIECE = re.compile(
    r" [A-Za-z]+(?= [A-Za-z]|[,.;:!?])"
    r"|.[^ ,.;:!?]*(?:(?:(?<![A-Za-z])[,.;:!?]|(?<![!-~]) | (?![A-Za-z]))[^ ,.;:!?]*)*",
    re.DOTALL,
)
CUT_INSIDE = re.compile(r"[A-Za-z][,.;:!?]| ")  # an added token with one of these might lie in two pieces
REMEMBERED = 1 << 23  # characters of all remembered pieces


class Pieces:
    """Encodes texts with a tokenizer for which ``encodes_pieces`` holds.

    Args:
        backend: The tokenizer's ``backend_tokenizer``, which neither pads nor truncates.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._forget()

    def __call__(self, texts: Sequence[str]) -> Flat:
        """The ids of the texts, which are those that the tokenizer gives without special tokens."""
        if self._characters > REMEMBERED:
            self._forget()
        found = [PIECE.findall(text) for text in texts]
        pieces = [piece for mine in found for piece in mine]
        self._learn([piece for piece in dict.fromkeys(pieces) if piece not in self._number])
        number_P = np.fromiter(map(self._number.__getitem__, pieces), np.int64, len(pieces))
        bounds = np.array(self._bounds, np.int64)
        start_P, size_P = bounds[number_P], np.diff(bounds)[number_P]
        end_P = np.cumsum(size_P)  # in the texts, end to end
        place_N = np.repeat(start_P - (end_P - size_P), size_P) + np.arange(int(size_P.sum()))
        count_T = np.array([len(mine) for mine in found], np.int64)
        bounds_T1 = np.append(0, end_P)[np.append(0, np.cumsum(count_T))]
        return Flat(np.array(self._ids, np.int32)[place_N], bounds_T1)

    def _learn(self, pieces: Sequence[str]) -> None:
        for piece, encoding in zip(
            pieces, self._backend.encode_batch_fast(pieces, add_special_tokens=False), strict=True
        ):
            self._number[piece] = len(self._number)
            self._ids.extend(encoding.ids)
            self._bounds.append(len(self._ids))
            self._characters += len(piece)

    def _forget(self) -> None:
        self._number: dict[str, int] = {}
        self._ids, self._bounds = array("i"), array("q", [0])
        self._characters = 0


class Flat(NamedTuple):
    """The ids of T texts, end to end."""

    ids: Ids  # [N]
    bounds: Int64s  # [T + 1]


def encodes_pieces(tokenizer: Any) -> bool:
    """Whether a fast tokenizer gives every text the ids of its pieces, end to end."""
    backend = tokenizer.backend_tokenizer
    normalizer, model = _described(backend.normalizer), backend.model
    whole = all(
        not (token.lstrip or token.rstrip or token.single_word) and not CUT_INSIDE.search(token.content)
        for token in tokenizer.added_tokens_decoder.values()
    )
    return (
        whole
        and normalizer in (None, {"type": "NFC"})  # NFC changes no ASCII character, and joins none to the one before
        and isinstance(model, BPE)
        and not model.dropout
        and _splits_by_known(_described(backend.pre_tokenizer))
    )


def _described(part: Any) -> Any:
    """A part of a tokenizer as JSON values; None without it. The whole tokenizer's JSON has its vocabulary, too."""
    return None if part is None else json.loads(part.__getstate__())


def _splits_by_known(splitter: dict[str, Any] | None) -> bool:
    """Whether texts are split by an expression of ``KNOWN``, with nothing before or after it but splits at digits."""
    if splitter is None:
        return False
    parts = splitter["pretokenizers"] if splitter["type"] == "Sequence" else [splitter]
    *before, last = parts
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return False
    splits = [part for part in before if part["type"] == "Split"]
    if any(part["type"] not in ("Split", "Digits") for part in before) or not all(map(_known, splits)):
        return False
    return bool(splits) or bool(last["use_regex"])


def _known(split: dict[str, Any]) -> bool:
    return split["pattern"].get("Regex") in KNOWN and split["behavior"] == "Isolated" and not split["invert"]
