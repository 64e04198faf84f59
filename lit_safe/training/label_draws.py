"""Random numbers for sampled labels: one per pair and value of the multiplier.

Letters: B pairs.
"""

from typing import Any

import torch
from torch import Tensor

from lit_safe.hashing import hash64
from lit_safe.types import PackedBatch

FACTORS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)  # as int64


class LabelDraws:
    """Counts the values that the multiplier takes, and gives new random numbers for each.

    C-DPO's theory samples a data set for each multiplier (Liu et al. 2024, arXiv:2403.02475, eq. 12). A pair therefore
    keeps its random number while the multiplier is constant, across epochs and resumes, and gets a new one when the
    multiplier changes.
    """

    def __init__(self) -> None:
        self.number = 0
        self._multiplier: list[float] | None = None

    def see(self, multiplier: Tensor) -> None:
        """Update the count. Call this whenever the multiplier may have changed."""
        value = multiplier.reshape(-1).tolist()
        self.number += self._multiplier is not None and value != self._multiplier
        self._multiplier = value

    def drawn(self, batch: PackedBatch, seed: int) -> PackedBatch:
        """The batch with random numbers for the current multiplier. The data contain those of the first multiplier."""
        if self.number == 0 or batch.label.draw is None:
            return batch
        draw_B = draws(batch.pair_id, hash64("draw", seed, self.number))
        return batch._replace(label=batch.label._replace(draw=draw_B))

    def state_dict(self) -> dict[str, Any]:
        """The state as numbers."""
        return {"number": self.number, "multiplier": self._multiplier}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state."""
        self.number, self._multiplier = state["number"], state["multiplier"]


def draws(id_B: Tensor, key: int) -> Tensor:
    """[B] fp32 in [0, 1): a hash of each id and ``key``, computed on the ids' device without waiting for it.

    Uses the finaliser of SplitMix64 (Steele, Lea and Flood 2014, https://doi.org/10.1145/2660193.2660195). If one bit
    of the id changes, each bit of the result changes with probability 1/2.
    """
    mixed_B = id_B ^ key
    for shift, factor in zip((30, 27), FACTORS, strict=True):
        mixed_B = (mixed_B ^ _shifted(mixed_B, shift)) * factor  # int64 products wrap
    mixed_B = mixed_B ^ _shifted(mixed_B, 31)
    return (mixed_B & (2**24 - 1)).to(torch.float32) / 2**24


def _shifted(value_B: Tensor, bits: int) -> Tensor:
    """A logical right shift, which fills with zeros."""
    return (value_B >> bits) & ((1 << (64 - bits)) - 1)
