"""Assigns rows to optimizer steps and ranks. The assignment depends only on (seed, epoch, row ids).

A run therefore sees the same steps for any micro-batch size, any number of ranks, and any point of stop and resume.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np

from data.tokens import Int64s
from lit_safe.hashing import hash64

if TYPE_CHECKING:
    from lightning import Trainer

Batch = TypeVar("Batch", covariant=True)


class Rank(NamedTuple):
    """One of ``world`` processes that share every step's rows."""

    rank: int = 0
    world: int = 1


ALONE = Rank()


class MicroBatch(NamedTuple):
    """Rows of one forward and backward pass on one rank: indices, followed by ``fillers`` filler rows."""

    rows: Int64s
    fillers: int


def ordered(row_ids: Int64s, *key: object) -> Int64s:
    """Indices of all rows, ordered by a hash of ``key`` and row id. A row's position in the data has no effect."""
    hashes = np.array([hash64("order", *key, int(row_id)) for row_id in row_ids], np.int64)
    return np.lexsort((np.arange(len(row_ids)), row_ids, hashes))


def micro_batches(step: Int64s, size: int, rank: Rank) -> list[MicroBatch]:
    """This rank's share of a step's rows, in micro-batches of at most ``size``.

    Every rank runs the same number of micro-batches of the same size. A rank with one row less than rank 0 gets a
    filler.
    """
    largest = -(-len(step) // rank.world)
    share = step[rank.rank :: rank.world]
    return [
        MicroBatch(share[start : start + size], min(size, largest - start) - len(share[start : start + size]))
        for start in range(0, largest, size)
    ]


def position(trainer: Trainer, steps: int) -> tuple[int, int]:
    """(epoch, step within it) of training, for epochs of ``steps`` steps, which the trainer may have limited.

    It is computed only from ``trainer.global_step``, which a checkpoint restores before any batch is fetched. This
    works because the module takes exactly one optimizer step per item.
    """
    limit = trainer.limit_train_batches
    return divmod(trainer.global_step, max(1, min(steps, limit) if isinstance(limit, int) else int(steps * limit)))


class StepLoader(Generic[Batch]):
    """A training loader. Each item is the list of micro-batches of one optimizer step on this rank.

    It is not a ``torch.utils.data.DataLoader``, so that Lightning neither adds a sampler nor repeats rows. The ids are
    in memory and packing takes less than a millisecond, so there are no workers. The loader asks for the training
    position when the first step is fetched, so a resumed run continues with the next step.

    Args:
        row_ids: [rows] hashes of the rows' texts.
        pack: Makes a batch from a micro-batch and the indices of its whole step.
        rows_per_step: Rows of an optimizer step over all micro-batches and ranks. The last step of an epoch has the
            remaining rows.
        micro_batch_rows: Maximum number of rows in one forward pass.
        seed: Seed of the order.
        rank: This process's rank.
        start: Function from the loader's length to (epoch, step within it), the position of training.
    """

    def __init__(
        self,
        row_ids: Int64s,
        pack: Callable[[MicroBatch, Int64s], Batch],
        rows_per_step: int,
        micro_batch_rows: int,
        seed: int,
        rank: Rank = ALONE,
        start: Callable[[int], tuple[int, int]] = lambda steps: (0, 0),
    ) -> None:
        if rows_per_step < 1 or micro_batch_rows < 1:
            raise ValueError(
                f"a step and a micro-batch need at least 1 row, got {rows_per_step} and {micro_batch_rows}"
            )
        self.row_ids, self.pack, self.rank, self.start = row_ids, pack, rank, start
        self.rows_per_step, self.micro_batch_rows, self.seed = rows_per_step, micro_batch_rows, seed

    def __len__(self) -> int:
        return -(-len(self.row_ids) // self.rows_per_step)

    def __iter__(self) -> Iterator[list[Batch]]:
        epoch, first = self.start(len(self))
        order = ordered(self.row_ids, self.seed, epoch)
        for number in range(first, len(self)):
            step = order[number * self.rows_per_step : (number + 1) * self.rows_per_step]
            yield [self.pack(micro, step) for micro in micro_batches(step, self.micro_batch_rows, self.rank)]

    def state_dict(self) -> dict[str, Any]:
        """Values that must be equal in a resumed run. The trainer's own progress holds the position."""
        rows = np.sort(self.row_ids).tobytes().hex()
        return {"rows": hash64(rows), "rows_per_step": self.rows_per_step, "seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Check that this is the data that the checkpoint was trained on.

        Raises:
            ValueError: Rows, seed or step size differ, so "the next step" is undefined.
        """
        ours = self.state_dict()
        changed = [name for name in ours if ours[name] != state.get(name)]
        if changed:
            raise ValueError(
                f"the checkpoint was trained with other data: {', '.join(changed)} changed; resume with the run's own "
                "data configuration, or start a new run from its weights"
            )


class EvalLoader(Generic[Batch]):
    """Every row once, in a hashed order. An item is one batch; sums over ranks count every row once.

    Args:
        row_ids: [rows] hashes of the rows' texts.
        pack: Makes a batch from a micro-batch and the indices of all ranks' batches of the same step.
        batch_rows: Rows of a batch on one rank.
        rank: This process's rank.
    """

    def __init__(
        self, row_ids: Int64s, pack: Callable[[MicroBatch, Int64s], Batch], batch_rows: int, rank: Rank = ALONE
    ) -> None:
        if batch_rows < 1:
            raise ValueError(f"a batch needs at least 1 row, got {batch_rows}")
        self.row_ids, self.pack, self.batch_rows, self.rank = row_ids, pack, batch_rows, rank

    def __len__(self) -> int:
        return -(-len(self.row_ids) // (self.batch_rows * self.rank.world))

    def __iter__(self) -> Iterator[Batch]:
        order = ordered(self.row_ids, "evaluation")
        together = self.batch_rows * self.rank.world
        for start in range(0, len(order), together):
            rows = order[start : start + together]
            (micro,) = micro_batches(rows, self.batch_rows, self.rank)
            yield self.pack(micro, rows)
