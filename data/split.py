"""One split for every source and every stage. Only the hash of a prompt's normalised text decides the split.

A prompt that appears in two datasets, or in an SFT file and a preference file, is therefore in the same split in both.
The normal form is coarse, so that near-duplicates share a split. A collision ('C' and 'C++') only puts two prompts into
one split, which is harmless. A prompt's *id* is exact, because a collision of ids would leave one of the two prompts
without rollouts, and would mix up the labels of the two.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from json.encoder import encode_basestring_ascii as as_json  # one string as JSON
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

from data.schema import Message, PreferenceRow, Row, SftRow, SftSource, Source
from lit_safe.hashing import hash64, uniform

Split = Literal["train", "val", "dual", "certify"]
UNSPOKEN = frozenset({"system", "tools"})  # roles that no side of the conversation speaks
WORD = re.compile(r"[^\W_]+")  # letters and digits, as ``str.isalnum`` has them
SHARES: Mapping[Split, float] = {"train": 0.8, "val": 0.1, "dual": 0.05, "certify": 0.05}


def normalise(prompt: tuple[Message, ...] | str) -> str:
    """The key of the split: NFKC, case-folded, letters and digits only, roles marked.

    A plain prompt equals a conversation of one user message with the same text; system messages and tools are ignored.
    """
    messages = (Message("user", prompt),) if isinstance(prompt, str) else prompt
    turns = []
    for message in messages:
        if message.role not in UNSPOKEN:
            folded = unicodedata.normalize("NFKC", message.content).casefold()
            turns.append(f"{message.role}:{' '.join(WORD.findall(folded))}")
    return "\n".join(turns)


class Keys(NamedTuple):
    """Hashes of one prompt: ``split`` as ``split_key`` has it, ``id`` as ``prompt_id`` has it."""

    json: str
    split: int
    id: int

    def text_id(self, *responses: str) -> int:
        """As the function ``text_id`` for this prompt."""
        texts = ", ".join(map(as_json, sorted(responses)))
        return hash64("text", f"[{self.json}, [{texts}]]")  # unlike a join, JSON is unambiguous


@lru_cache(512)
def keys_of(prompt: tuple[Message, ...] | str) -> Keys:
    """All hashes of a prompt. The rows of one prompt often follow each other, so the last ones are remembered."""
    keys = Keys(_prompt_json(prompt), hash64("prompt", normalise(prompt)), 0)
    return keys._replace(id=keys.text_id())


def split_key(prompt: tuple[Message, ...] | str) -> int:
    """A hash of the normalised prompt. Prompts with the same key are in the same split."""
    return keys_of(prompt).split


def prompt_id(prompt: tuple[Message, ...] | str) -> int:
    """A hash of the exact prompt: the id in batches, and the cluster of standard errors.

    Prompts that a model reads differently have different ids. Every character counts, and so do a system message and
    whether the prompt is a conversation or plain text.
    """
    return keys_of(prompt).id


def text_id(prompt: tuple[Message, ...] | str, *responses: str) -> int:
    """A hash of a prompt and the responses to it, whatever their order."""
    return keys_of(prompt).text_id(*responses)


def _prompt_json(prompt: tuple[Message, ...] | str) -> str:
    if isinstance(prompt, str):
        return as_json(prompt)
    return json.dumps([(t.role, t.content, t.fields)[: 3 if t.fields else 2] for t in prompt])


def split_of(
    prompt: tuple[Message, ...] | str, group: str | None = None, shares: Mapping[Split, float] = SHARES
) -> Split:
    """The split of a prompt. ``group`` replaces the prompt as the key if prompts must stay together."""
    total = sum(shares.values())
    if abs(total - 1) > 1e-9 or set(shares) != set(get_args(Split)):
        raise ValueError(f"shares must name {get_args(Split)} and sum to 1, got {dict(shares)}")
    point = uniform("split", normalise(prompt) if group is None else f"group:{group}")
    for name, share in shares.items():
        point -= share
        if point < 0:
            return name
    return "train"  # reached only by a rounding error


NOWHERE: Mapping[int, Split] = MappingProxyType({})


def assign(rows: Iterable[PreferenceRow | SftRow], placed: Mapping[int, Split] = NOWHERE) -> dict[int, Split]:
    """The split of every prompt of ``rows``, by its ``split_key``.

    A prompt that has a split group in any row follows its group in all rows. A prompt that ``placed`` names by its
    split key is where ``placed`` says, whichever source repeats it.
    """
    prompts: dict[int, tuple[tuple[Message, ...] | str, str | None]] = {}
    for row in rows:
        key = split_key(row.prompt)
        if key not in prompts or prompts[key][1] is None:
            prompts[key] = (row.prompt, row.split_group)
    return {i: placed.get(i) or split_of(prompt, group) for i, (prompt, group) in prompts.items()}


def placed(sources: Sequence[Source | SftSource]) -> dict[int, Split]:
    """The split of the prompts whose sources decide it, by split key; the hash decides that of all others.

    Prompts of sources with ``evaluation_only`` are in their ``placed_in``, or in ``val``; training never reads them.
    The first of two such sources decides.
    """
    found: dict[int, Split] = {}
    barred = [source for source in sources if getattr(source, "evaluation_only", False)]
    trained = [source for source in sources if getattr(source, "placed_in", None) == "train"]
    for source in (*barred, *trained):
        split: Split = getattr(source, "placed_in", "val")
        for row in source:
            if isinstance(row, Row | SftRow):
                found.setdefault(split_key(row.prompt), split)
    return found
