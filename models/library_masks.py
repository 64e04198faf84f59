"""Tells transformers whether a row holds several sequences, which it would otherwise read from the positions.

That reading waits for the device in every pass.

Letters: K rows, S tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import masking_utils

READER = "find_packed_sequence_indices"  # transformers 5; a version without it reads the positions as it did


@contextmanager
def packing(packed: bool) -> Iterator[None]:
    """A block in which a decoder that gets positions and no mask knows whether its rows are ``packed``.

    Args:
        packed: Positions that do not continue begin another sequence. If False, every row is one sequence.
    """
    before: Callable[[Tensor], Tensor | None] | None = getattr(masking_utils, READER, None)
    if before is None:
        yield
        return
    setattr(masking_utils, READER, sequence_of if packed else _one)
    try:
        yield
    finally:
        setattr(masking_utils, READER, before)


def sequence_of(position_ids: Tensor) -> Tensor:
    """[K, S] the number of each token's sequence within its row, from 0."""
    before_K1 = position_ids[:, :1] - 1
    return (torch.diff(position_ids, prepend=before_K1, dim=-1) != 1).cumsum(-1)


def _one(position_ids: Tensor) -> None:
    """Every row is one sequence."""
