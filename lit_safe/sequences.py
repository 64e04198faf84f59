"""From token ids to the packed layout that models read."""

from collections.abc import Sequence

import torch

from lit_safe.types import IGNORE, PackedSequences


def pack_sequences(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> PackedSequences:
    """Lay N prompts with their responses end to end; every response token is scored, no prompt token is.

    Args:
        prompts: Token ids, at least one each: the first response token needs a position that predicts it.
        responses: Token ids, the stop token included where there is one; may be empty, which scores nothing.

    Returns:
        N sequences in order, on the CPU.

    Raises:
        ValueError: If the counts differ, or a prompt is empty.
    """
    ids: list[int] = []
    target: list[int] = []
    position: list[int] = []
    bounds = [0]
    for number, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        if not prompt:
            raise ValueError(f"prompt {number} has no tokens")
        ids += [*prompt, *response]
        target += [IGNORE] * (len(prompt) - 1) + [*response, IGNORE]
        position += range(len(prompt) + len(response))
        bounds.append(len(ids))
    return PackedSequences(
        torch.tensor(ids, dtype=torch.int64),
        torch.tensor(target, dtype=torch.int64),
        torch.tensor(position, dtype=torch.int64),
        torch.tensor(bounds, dtype=torch.int32),
    )
