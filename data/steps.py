"""Assigns rows to optimizer steps and ranks. The assignment depends only on (seed, epoch, row ids).

A run therefore sees the same steps for any micro-batch size, any number of ranks, and any point of stop and resume.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from data.micro_batches import ALONE, Divide, MicroBatch, Rank, by_rows, longest_first
from data.tokens import Int64s
from lit_safe.hashing import hash64
from lit_safe.phases import phase

if TYPE_CHECKING:
    from lightning import Trainer

Batch = TypeVar("Batch", covariant=True)


def ordered(row_ids: Int64s, *key: object) -> Int64s:
    """Indices of all rows, ordered by a hash of ``key`` and row id. A row's position in the data has no effect."""
    hashes = np.array([hash64("order", *key, int(row_id)) for row_id in row_ids], np.int64)
    return np.lexsort((np.arange(len(row_ids)), row_ids, hashes))


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
        divide: Divides a step's rows into micro-batches.
        seed: Seed of the order.
        rank: This process's rank.
        start: Function from the loader's length to (epoch, step within it), the position of training.
    """

    def __init__(
        self,
        row_ids: Int64s,
        pack: Callable[[MicroBatch, Int64s], Batch],
        rows_per_step: int,
        divide: Divide,
        seed: int,
        rank: Rank = ALONE,
        start: Callable[[int], tuple[int, int]] = lambda steps: (0, 0),
    ) -> None:
        if rows_per_step < 1:
            raise ValueError(f"a step needs at least 1 row, got {rows_per_step}")
        self.row_ids, self.pack, self.rank, self.start = row_ids, pack, rank, start
        self.rows_per_step, self.divide, self.seed = rows_per_step, divide, seed

    def __len__(self) -> int:
        return -(-len(self.row_ids) // self.rows_per_step)

    def __iter__(self) -> Iterator[list[Batch]]:
        epoch, first = self.start(len(self))
        order = ordered(self.row_ids, self.seed, epoch)
        for number in range(first, len(self)):
            step = order[number * self.rows_per_step : (number + 1) * self.rows_per_step]
            with phase("data"):
                batches = [self.pack(micro, step) for micro in self.divide(step, self.rank)]
            yield batches

    def rows_used(self, steps: int, each: int) -> tuple[Int64s, int]:
        """The rows that the first ``steps`` steps of a run use, each once, and how many the steps have together.

        Args:
            steps: Number of steps from the run's beginning.
            each: Steps of an epoch; the trainer may have limited them.
        """
        used, together = np.zeros(len(self.row_ids), bool), 0
        for epoch in range(-(-steps // max(1, each))):
            count = min(each, steps - epoch * each) * self.rows_per_step
            together += min(count, len(self.row_ids))
            if not used.all():
                used[ordered(self.row_ids, self.seed, epoch)[:count]] = True
        return np.flatnonzero(used), together

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
    """Every row once. An item is one batch; sums over ranks count every row once.

    Rows of similar length are in one batch, and the batches are in a hashed order, so that the first few are a sample.

    Args:
        row_ids: [rows] hashes of the rows' texts.
        pack: Makes a batch from a micro-batch and the indices of all ranks' batches of the same step.
        batch_rows: Rows of a batch on one rank.
        rank: This process's rank.
        tokens_of: [rows] tokens of each row. None: batches in a hashed order of rows.
    """

    def __init__(
        self,
        row_ids: Int64s,
        pack: Callable[[MicroBatch, Int64s], Batch],
        batch_rows: int,
        rank: Rank = ALONE,
        tokens_of: Int64s | None = None,
    ) -> None:
        if batch_rows < 1:
            raise ValueError(f"a batch needs at least 1 row, got {batch_rows}")
        self.row_ids, self.pack, self.batch_rows, self.rank = row_ids, pack, batch_rows, rank
        self.tokens_of = tokens_of

    def __len__(self) -> int:
        return -(-len(self.row_ids) // (self.batch_rows * self.rank.world))

    def __iter__(self) -> Iterator[Batch]:
        order = ordered(self.row_ids, "evaluation")
        numbers = np.arange(len(self))
        if self.tokens_of is not None:
            order = longest_first(order, self.tokens_of)
            numbers = ordered(numbers, "batches")
        together = self.batch_rows * self.rank.world
        for number in numbers.tolist():
            rows = order[number * together : (number + 1) * together]
            (micro,) = by_rows(self.batch_rows)(rows, self.rank)
            yield self.pack(micro, rows)
