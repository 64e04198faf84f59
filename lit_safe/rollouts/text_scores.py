"""Scores many texts: each text once, kept in a folder so that a killed command continues, and shared by ranks.

Letters: n texts, U distinct ones, C columns of a scorer.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from lit_safe.execution.progress import progress
from lit_safe.execution.quiet import quiet
from lit_safe.execution.ranks import merge, of_first_rank, rank_and_world
from lit_safe.execution.row_store import RowStore
from lit_safe.hashing import hash64
from lit_safe.rollouts.scoring import check_scores, name_of, score
from lit_safe.types import CostFunction


@runtime_checkable
class Digested(Protocol):
    """A scorer that can be told from others, so that its scores can be kept."""

    def digest(self) -> str:
        """A hash of everything that decides a score."""


class Text(NamedTuple):
    """A response to a prompt, with the name of its row for messages."""

    prompt: str
    response: str
    row: str

    @property
    def key(self) -> int:
        """A hash of prompt and response."""
        return hash64("text", self.prompt, self.response)


def score_texts(
    scorer: CostFunction,
    texts: Sequence[Text],
    *,
    batch: int,
    cache_dir: Path | None,
    device: torch.device,
    unknown: bool = False,
    what: str = "scores",
) -> Tensor:
    """[n, C] float64 scores of ``texts``, equal on all ranks.

    Each distinct text is scored once, by one rank, in batches of texts of similar length. Scores are written to
    ``cache_dir`` after each batch, below the scorer's digest. A later call reads them.

    Args:
        scorer: Scores texts. Without a method ``digest`` its scores are not kept.
        texts: The texts, the same list on each rank.
        batch: Texts of one call of the scorer.
        cache_dir: Folder of kept scores, or None.
        device: Device on which ranks exchange scores.
        unknown: Whether a score that is not finite is returned as NaN. It is not kept, so a later call asks again.
        what: Description for the progress bar.

    Raises:
        ValueError: If the scorer returns no scores, or one is not finite and ``unknown`` is False. The message names
            the row.
    """
    keys = [text.key for text in texts]
    distinct = dict(zip(reversed(keys), reversed(texts), strict=True))  # the first text of each key
    if not distinct:
        return torch.zeros(0, 1, dtype=torch.float64)
    store = _store(scorer, cache_dir)
    with quiet(scorer, hash64("score-texts")):
        known = {} if store is None else store.read()
        # all ranks divide the same texts, whatever other processes write meanwhile
        todo = of_first_rank(sorted((key for key in distinct if key not in known), key=lambda k: _size(distinct[k], k)))
        rank, world = rank_and_world()
        mine = todo[rank::world] or todo[:1]  # a rank without a text repeats one, to learn the number of columns
        for start in progress(range(0, len(mine), batch), f"{what}, batch"):
            part = mine[start : start + batch]
            some = [distinct[key] for key in part]
            found = score(scorer, [text.prompt for text in some], [text.response for text in some])
            if unknown:
                found = found.where(found.isfinite(), torch.nan)
            check_scores(scorer, found, [f"row {text.row}" for text in some], finite=not unknown)
            rows = found.reshape(len(some), -1).numpy()
            known.update(zip(part, rows, strict=True))
            whole = [(key, row) for key, row in zip(part, rows, strict=True) if np.isfinite(row).all()]
            if store is not None and whole:
                store.add([key for key, _ in whole], np.stack([row for _, row in whole]))
                store.flush(rank)
        width = len(next(iter(known.values())))
        wrong = next((key for key, row in known.items() if len(row) != width), None)
        if wrong is not None:
            raise ValueError(
                f"the cost function {name_of(scorer)} gave rows of {len(known[wrong])} after rows of {width}"
            )
        table = torch.zeros(len(todo), width, dtype=torch.float64)
        for place, key in enumerate(todo):
            if place % world == rank:
                table[place] = torch.from_numpy(known[key])
        known.update(zip(todo, merge(table, device).numpy(), strict=True))
    return torch.from_numpy(np.stack([known[key] for key in keys]))


def _size(text: Text, key: int) -> tuple[int, int]:
    return -len(text.prompt) - len(text.response), key


def _store(scorer: CostFunction, cache_dir: Path | None) -> RowStore | None:
    if cache_dir is None or not isinstance(scorer, Digested):
        return None
    name = hashlib.sha256(scorer.digest().encode()).hexdigest()[:16]
    return RowStore(cache_dir / f"scores-{name}", np.float64)


@contextmanager
def kept_beside(path: Path, cache_dir: str | None) -> Iterator[Path]:
    """The folder of kept scores: ``cache_dir``, or a hidden one beside ``path`` that goes once the block succeeds."""
    if cache_dir is not None:
        yield Path(cache_dir).expanduser()
        return
    folder = path.with_name(f".{path.name}.scores")
    yield folder
    if rank_and_world()[0] > 0:  # the first rank removes it, once it has the scores of all
        return
    for file in sorted(folder.glob("scores-*/*")):
        file.unlink()
    for one in (*folder.glob("scores-*"), folder):
        if one.is_dir() and not any(os.scandir(one)):
            one.rmdir()
