"""From token ids to the packed layout that models read."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lit_safe.types import IGNORE, PackedSequences

Ids: TypeAlias = Sequence[int] | npt.NDArray[np.int32]


def pack_sequences(prompts: Sequence[Ids], responses: Sequence[Ids]) -> PackedSequences:
    """Lay N prompts with their responses end to end; every response token is scored, no prompt token is.

    Position t is scored iff token t + 1 belongs to the response, so the first response token is predicted from the
    prompt's last one, and the last position of a sequence predicts nothing.

    Args:
        prompts: Token ids, at least one each: the first response token needs a position that predicts it.
        responses: Token ids, the stop token included where there is one; may be empty, which scores nothing.

    Returns:
        N sequences in order, on the CPU.

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
        position[start:end] = np.arange(end - start)
        bounds[number + 1] = start = end
    return PackedSequences(*map(torch.from_numpy, (input_ids, target, position, bounds)))


def select_sequences(sequences: PackedSequences, index: Tensor) -> PackedSequences:
    """The sequences of these indices [n], in their order."""
    bounds_N1 = sequences.cu_seqlens.long()
    length_n = bounds_N1.diff()[index]
    cu_n1 = torch.cat([length_n.new_zeros(1), length_n.cumsum(0)])
    shift_n = bounds_N1[:-1][index] - cu_n1[:-1]
    at_t = torch.arange(int(cu_n1[-1]), device=index.device) + torch.repeat_interleave(shift_n, length_n)
    parts = (sequences.input_ids[at_t], sequences.target[at_t], sequences.position[at_t])
    return PackedSequences(*parts, cu_n1.to(torch.int32))
