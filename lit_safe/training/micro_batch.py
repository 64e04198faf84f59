"""Chooses the number of tokens of a micro-batch from the memory of the device, if the user has not."""

from typing import Any, Protocol

import torch

from lit_safe.execution.process_memory import available_bytes
from lit_safe.execution.ranks import of_first_rank
from lit_safe.types import MemoryEstimate

MOST = {"cpu": 1024, "cuda": 32768}
"""More tokens make a step no faster: products of this many rows already use the whole device."""

FEWEST = 64
SHARE = 0.8  # of the memory; the rest is for what the estimate does not know


class Estimates(Protocol):
    """A model that estimates its memory."""

    def memory_estimate(self, tokens: int, scored: int) -> MemoryEstimate:
        """Bytes of a training step."""


def ranks_on(device: torch.device, ranks: int) -> int:
    """How many of a machine's ranks share the memory of one of its devices."""
    return 1 if device.type == "cuda" else ranks


def choose_micro_batch(pair: Estimates, data: Any, device: torch.device, ranks: int = 1) -> None:
    """Give ``data`` the largest micro-batch that its device needs and its memory holds.

    The number is a power of two. It depends on the size of the memory and not on how much of it is in use, so that a
    run that is repeated or resumed on the same machine rounds alike. All ranks must call this.

    Args:
        pair: Loaded.
        data: Set up. Nothing happens if its user has limited micro-batches, or if it has no ``micro_batch``.
        device: The device of the training.
        ranks: Number of processes that share its memory.
    """
    limit = getattr(data, "micro_batch", None)
    if limit is None:
        return
    limit.device, limit.shared = device.type, getattr(pair, "layout", None) == "shared"
    if not limit.free:
        return
    most = SHARE * available_bytes(device) / ranks
    tokens = MOST.get(device.type, MOST["cuda"])
    limit.take(tokens)
    while tokens > FEWEST and pair.memory_estimate(*data.largest_micro_batch).total > most:
        tokens //= 2
        limit.take(tokens)
    limit.take(of_first_rank(tokens))
