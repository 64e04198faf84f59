"""Writes what ``predict`` computes as one Parquet file.

Letters: n rows, K columns.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lit_safe.execution.ranks import failing_together, gather
from lit_safe.runs.loggers.files import TEMPORARY, named

FILE = "predictions.parquet"
PRESENT = "present"  # the column that is false for filler rows

log = logging.getLogger(__name__)


class PredictionFile(Callback):
    """Writes ``<run folder>/predict/predictions.parquet``: one row for each row of the data, in the order of ids.

    The module's ``predict_step`` gives a dictionary of columns [B], with ``present`` among them. The ranks share the
    rows; the first rank writes the file, which holds each row once. Integer columns stay int64, all others are float64.
    """

    def __init__(self) -> None:
        self._columns: dict[str, list[Tensor]] = {}

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the rows of an earlier prediction."""
        self._columns = {}

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the batch's columns, on the host.

        Raises:
            TypeError: If ``predict_step`` gives anything but a dictionary with ``present``.
        """
        if not isinstance(outputs, Mapping) or PRESENT not in outputs:
            raise TypeError(
                f"{type(pl_module).__name__}.predict_step must give a dictionary of columns, with {PRESENT!r} among "
                f"them, got {type(outputs).__name__}"
            )
        for name, column in outputs.items():
            self._columns.setdefault(str(name), []).append(column.detach().cpu())

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collect the rows of all ranks, and write them on the first one."""
        columns, self._columns = {name: torch.cat(parts) for name, parts in self._columns.items()}, {}
        if not columns:
            return
        path = Path(trainer.default_root_dir) / "predict" / FILE
        with failing_together():
            table = _of_all_ranks(columns, pl_module.device)
            if trainer.is_global_zero:
                _write(table, path)
        if trainer.is_global_zero:
            log.info("predictions: %s rows of %s columns in %s", f"{table.num_rows:,}", table.num_columns, path)


def _of_all_ranks(columns: Mapping[str, Tensor], device: torch.device) -> pyarrow.Table:
    """The rows of all ranks without fillers, in the order of the first column, which is the row's id."""
    bits = [_bits(column) for column in columns.values()]
    rows_nK = gather(torch.stack(bits, dim=-1), device)
    rows_nK = rows_nK[rows_nK[:, list(columns).index(PRESENT)] == 1]
    rows_nK = rows_nK[rows_nK[:, 0].argsort(stable=True)]
    arrays = {}
    for k, (name, column) in enumerate(columns.items()):
        values_n = rows_nK[:, k].contiguous()
        arrays[name] = (values_n.view(torch.float64) if column.is_floating_point() else values_n).numpy()
    arrays.pop(PRESENT)
    return pyarrow.table(arrays)


def _bits(column: Tensor) -> Tensor:
    """[n] int64 that holds the column exactly: the bits of its float64 values, or its integers."""
    return column.double().view(torch.int64) if column.is_floating_point() else column.long()


def _write(table: pyarrow.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}{TEMPORARY}")
    with named(path):
        pyarrow.parquet.write_table(table, partial)
        os.replace(partial, path)
