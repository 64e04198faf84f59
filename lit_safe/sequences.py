"""Packs token ids into the layout that models read."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lit_safe.types import IGNORE, PackedSequences

Ids: TypeAlias = Sequence[int] | npt.NDArray[np.int32]


def pack_sequences(
    prompts: Sequence[Ids], responses: Sequence[Ids], unscored: Sequence[Ids] | None = None
) -> PackedSequences:
    """Concatenate N prompts with their responses. Response tokens are scored, prompt tokens are not.

    Position t is scored iff token t + 1 is in the response. The first response token is predicted at the prompt's last
    position. The last position of a sequence predicts nothing.

    Args:
        prompts: Token ids, at least one per prompt, because the first response token needs a position that predicts it.
        responses: Token ids, with the stop token if there is one. A response may be empty; then nothing is scored.
        unscored: For each response the starts and ends of the parts that are not scored; None scores all of it.

    Returns:
        N sequences in the given order, on the CPU.

    Raises:
        ValueError: If the counts differ, or a prompt is empty.
    """
    parts = list(zip(prompts, responses, strict=True))
    size = sum(len(prompt) + len(response) for prompt, response in parts)
    input_ids, position = np.empty(size, np.int64), np.empty(size, np.int64)
    target = np.full(size, IGNORE, np.int64)
    bounds = np.zeros(len(parts) + 1, np.int32)
    start = 0
    for number, (prompt, response) in enumerate(parts):
        if not len(prompt):
            raise ValueError(f"prompt {number} has no tokens")
        middle, end = start + len(prompt), start + len(prompt) + len(response)
        input_ids[start:middle], input_ids[middle:end] = prompt, response
        target[middle - 1 : end - 1] = response
        places = () if unscored is None else unscored[number]
        for first, last in zip(places[::2], places[1::2], strict=True):
            target[middle - 1 + int(first) : middle - 1 + int(last)] = IGNORE
        position[start:end] = np.arange(end - start)
        bounds[number + 1] = start = end
    return PackedSequences(*map(torch.from_numpy, (input_ids, target, position, bounds)))


def select_sequences(sequences: PackedSequences, index: Tensor) -> PackedSequences:
    """The sequences with the given indices [n], in this order."""
    bounds_N1 = sequences.cu_seqlens.long()
    length_n = bounds_N1.diff()[index]
    cu_n1 = torch.cat([length_n.new_zeros(1), length_n.cumsum(0)])
    shift_n = bounds_N1[:-1][index] - cu_n1[:-1]
    at_t = torch.arange(int(cu_n1[-1]), device=index.device) + torch.repeat_interleave(shift_n, length_n)
    parts = (sequences.input_ids[at_t], sequences.target[at_t], sequences.position[at_t])
    trunk = None if sequences.trunk is None else sequences.trunk[at_t]
    return PackedSequences(*parts, cu_n1.to(torch.int32), trunk)
