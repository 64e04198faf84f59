"""The protocols of module and data for evaluation, and the tables that an evaluation makes."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from lit_safe.protocols.pair import ScoringResponder
from lit_safe.types import PackedBatch, Pair, Prompt, Scored

Columns = dict[str, npt.NDArray[np.float64] | npt.NDArray[np.int64]]
"""A table: name → column, all of one length. Ids are int64, all else is float64. Unknown values are NaN."""


class Evaluated(Protocol):
    """The part of the module that an evaluation uses: its pair, and its result for a batch."""

    @property
    def pair(self) -> ScoringResponder:
        """The policy and its reference."""

    def __call__(self, batch: PackedBatch, own_reference: bool = False) -> tuple[Pair, Pair, Scored]:
        """Policy log-probs, log-ratios, losses and weights. ``own_reference``: the policy equals its reference."""


class HeldOut(Protocol):
    """The part of the data that an evaluation uses: labelled pairs and prompts of the val split."""

    def val_dataloader(self) -> Iterable[PackedBatch]:
        """This rank's part of the val pairs. All ranks have equally many batches and rows."""

    def prompts(self, split: str) -> Sequence[Prompt]:
        """The prompts of a split, each once."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens."""


class Measure(NamedTuple):
    """Values [n] of a quantity by row (NaN if undefined), the prompts by which they are clustered, and weights."""

    value: npt.NDArray[np.float64]
    cluster: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float64] | None = None
    share: bool = False  # whether values are in [0, 1]
