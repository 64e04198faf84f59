"""What an evaluation knows of module and data, and the tables it makes."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from lit_safe.types import PackedBatch, Pair, PairModel, Prompt, Scored

Columns = dict[str, npt.NDArray[np.float64] | npt.NDArray[np.int64]]
"""A table: columns of one length by name. Ids are int64, everything else float64, NaN where not known."""


class Evaluated(Protocol):
    """What is known of the module: its pair, and what it makes of a batch."""

    pair: PairModel

    def __call__(self, batch: PackedBatch, own_reference: bool = False) -> tuple[Pair, Pair, Scored]:
        """Policy log-probs, log-ratios, and the objective's word on each pair; the policy may be its own reference."""


class HeldOut(Protocol):
    """What is known of the data: labelled pairs and prompts of the val split."""

    def val_dataloader(self) -> Iterable[PackedBatch]:
        """This rank's share; every rank has as many batches of as many rows."""

    def prompts(self, split: str) -> Sequence[Prompt]:
        """The prompts of a split, each once."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens."""


class Measure(NamedTuple):
    """A quantity of every row: [n] values (NaN where not defined), the prompts that cluster them, and weights."""

    value: npt.NDArray[np.float64]
    cluster: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float64] | None = None
    share: bool = False  # a value is a share in [0, 1]
