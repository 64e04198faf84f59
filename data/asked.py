"""Prompts from sources of prompts alone: which split each is in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from data.schema import BadRow, PromptRow, PromptSource
from data.sources.places import Reserved
from data.split import Split, prompt_id, split_key, split_of

SHARES: Mapping[Split, float] = {"train": 0.0, "val": 0.2, "dual": 0.4, "certify": 0.4}
"""Nothing trains on these prompts, so none of them is left to the train split."""

MEASURED: Mapping[Split, float] = {"train": 0.0, "val": 0.5, "dual": 0.0, "certify": 0.5}
"""Prompts for evaluation only move no multiplier either."""


def asked(
    sources: Sequence[PromptSource],
    splits_by_key: Mapping[int, Split],
    skip: bool,
    splits_by_id: Mapping[int, Split] = MappingProxyType({}),
) -> list[tuple[PromptRow, Split]]:
    """Every prompt once, with its split, in the order of the sources.

    A prompt that the pairs hold too keeps the pairs' split. One of their train split is left out, because a policy may
    have learned it by heart. The other prompts of a ``Reserved`` source are all in its split. A prompt that several
    sources hold follows the first of them.

    Args:
        sources: The sources.
        splits_by_key: The split of the pairs' prompts, by ``split_key``.
        skip: Whether to leave unusable rows out. Otherwise the first one is raised.
        splits_by_id: The same by ``prompt_id``, for prompts of which only the text is kept.

    Raises:
        BadRow: At an unusable row.
    """
    barred = {
        split_key(row.prompt)
        for row, _ in _rows([source for source in sources if getattr(source, "evaluation_only", False)])
        if not isinstance(row, BadRow)
    }
    found: dict[int, tuple[PromptRow, Split]] = {}
    for row, reserved in _rows(sources):
        if isinstance(row, BadRow):
            if not skip:
                raise row
            continue
        key = split_key(row.prompt)
        of_pairs = splits_by_id.get(prompt_id(row.prompt)) or splits_by_key.get(key)
        split = of_pairs or reserved or split_of(row.prompt, shares=MEASURED if key in barred else SHARES)
        if split != "train" and not (split == "dual" and key in barred):
            found.setdefault(key, (row, split))
    return list(found.values())


def _rows(sources: Iterable[PromptSource]) -> Iterable[tuple[PromptRow | BadRow, Split | None]]:
    for source in sources:
        reserved = source.split if isinstance(source, Reserved) else None
        yield from ((row, reserved) for row in source)
