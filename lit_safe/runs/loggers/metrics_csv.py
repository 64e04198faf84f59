"""All metrics of a run in one wide CSV file."""

import csv
import io
import os
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from lit_safe.runs.loggers.files import ELSEWHERE, TEMPORARY, named, sync
from lit_safe.runs.loggers.run_logger import Position

FILE = "metrics.csv"
LEADING = ("step", "time")


class MetricsCSV(Logger):
    """Writes ``metrics.csv``: one row per call of ``log_metrics``, one column per metric.

    The columns are ``step`` (optimizer steps done), ``time`` (Unix seconds), then metrics in the order of their first
    entry. A cell is empty if the call did not log this metric. Rows are only appended, so a killed run loses
    none. To get one row per step, use ``pandas.read_csv(path).groupby("step").last()``. A new metric extends the header
    by an atomic rewrite of the file.
    """

    def __init__(self) -> None:
        super().__init__()
        self._folder: Path | None = None
        self._path: Path | None = None
        self._columns: list[str] = list(LEADING)
        self._rows = 0

    @property
    def name(self) -> str:
        """Empty, so callbacks that write files for this logger write into the run folder itself."""
        return ""

    @property
    def version(self) -> str:
        """Empty, because a run folder has one run."""
        return ""

    @property
    def save_dir(self) -> str | None:
        """The run folder. None before it is known."""
        return None if self._folder is None else str(self._folder)

    def place(self, folder: Path) -> None:
        """Use ``folder`` as the run folder. Writes nothing."""
        self._folder = folder

    def open(self, folder: Path) -> None:
        """Write to ``folder/metrics.csv``, after its existing rows."""
        self._folder, self._path = folder, folder / FILE
        self._columns, rows = _read(self._path)
        self._rows = len(rows)
        if self._path.exists():
            self._write(rows)  # a killed run may have left an incomplete row

    def position(self) -> Position:
        """The number of rows written, after syncing them to disk."""
        if self._path is not None and self._path.exists():
            sync(self._path)
        return {FILE: self._rows}

    def cut_back(self, position: Position) -> None:
        """Keep the first ``position["metrics.csv"]`` rows, and the columns that they use.

        Raises:
            ValueError: If the file has fewer rows.
        """
        columns, rows = _read(self._opened())
        keep = position.get(FILE, 0)
        if len(rows) < keep:
            raise ValueError(f"{self._path} has {len(rows)} rows, the checkpoint was saved after {keep}. {ELSEWHERE}")
        rows = rows[:keep]
        filled = [i for i, name in enumerate(columns) if name in LEADING or any(row[i] != "" for row in rows)]
        self._columns = [columns[i] for i in filled]
        self._write([[row[i] for i in filled] for row in rows])

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Tensor | float], step: int | None = None) -> None:
        """Append one row.

        Args:
            metrics: Scalars by name.
            step: Optimizer steps done.
        """
        path = self._opened()
        cells = {"step": "" if step is None else str(step), "time": f"{time.time():.3f}"}
        cells |= {name: repr(value.item() if isinstance(value, Tensor) else value) for name, value in metrics.items()}
        new = [name for name in cells if name not in self._columns]
        with named(path):
            if new or not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                _, rows = _read(path)
                self._columns += new
                self._write([[*row, *[""] * len(new)] for row in rows])
            with path.open("a", newline="", encoding="utf-8") as file:
                file.write(_line([cells.get(name, "") for name in self._columns]))
        self._rows += 1

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing, because hyperparameters are in the run's ``config.yaml``."""

    def _opened(self) -> Path:
        if self._path is None:
            raise RuntimeError("no folder yet: put lit_safe.runs.run_folder.RunFolder in callbacks")
        return self._path

    def _write(self, rows: Sequence[Sequence[str]]) -> None:
        path = self._opened()
        new = path.with_suffix(f".csv{TEMPORARY}")
        new.write_text("".join(map(_line, [self._columns, *rows])), newline="", encoding="utf-8")
        os.replace(new, path)
        self._rows = len(rows)


def _read(path: Path) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) of a file. An incomplete last line, left by a killed run, is ignored."""
    if not path.exists():
        return list(LEADING), []
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    try:
        text = whole.decode("utf-8")
    except UnicodeDecodeError as error:
        line = whole.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line}, has a byte that is not UTF-8: the file is damaged. {ELSEWHERE}"
        ) from None
    columns, *rows = csv.reader(io.StringIO(text)) if text else [list(LEADING)]
    return columns, rows


def _line(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
