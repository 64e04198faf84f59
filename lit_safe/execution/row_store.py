"""Rows of numbers by key in a folder: written piece by piece, so that a killed process loses little.

Each piece is a complete file that is renamed into place. Several processes may write into one folder at once.
"""

import contextlib
import hashlib
import os
import uuid
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[Any]


class RowStore:
    """A folder of files ``rows-*.npz``. Each has keys [n] int64 and rows [n, W].

    Args:
        folder: The folder; made at the first write. Its name must say what the rows are of.
        dtype: Type of the numbers.
    """

    def __init__(self, folder: Path, dtype: npt.DTypeLike) -> None:
        self.folder = folder
        self.dtype = np.dtype(dtype)
        self._keys: list[int] = []
        self._rows: list[Rows] = []

    @property
    def pending(self) -> int:
        """Number of rows that are not written yet."""
        return len(self._keys)

    def read(self) -> dict[int, Rows]:
        """All rows in the folder, by key.

        Raises:
            ValueError: If a file is damaged. The message names it.
        """
        found: dict[int, Rows] = {}
        for path in sorted(self.folder.glob("rows-*.npz")):
            found.update(self._read(path))
        return found

    def add(self, keys: Iterable[int], rows: Rows) -> None:
        """Keep rows [n, W] for the next ``flush``."""
        self._keys += list(keys)
        self._rows += [np.array(row, self.dtype) for row in rows]

    def flush(self, rank: int = 0) -> None:
        """Write the kept rows as one file, atomically."""
        if not self._keys:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        key_n, row_nW = np.array(self._keys, np.int64), np.stack(self._rows)
        name = uuid.uuid4().hex[:12]
        partial = self.folder / f".{name}.partial.npz"
        try:
            np.savez(partial, key=key_n, row=row_nW, sha256=_digest(key_n, row_nW))
            os.replace(partial, self.folder / f"rows-{rank}-{name}.npz")
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise
        self._keys, self._rows = [], []

    def _read(self, path: Path) -> dict[int, Rows]:
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                key_n, row_nW, digest = stored["key"], stored["row"], stored["sha256"]
            whole = np.array_equal(digest, _digest(key_n, row_nW)) and row_nW.dtype == self.dtype
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error):
            whole = False
        if not whole:
            raise ValueError(f"{path} is damaged: delete it; its rows are computed again")
        return dict(zip(key_n.tolist(), row_nW, strict=True))


def _digest(key_n: npt.NDArray[np.int64], row_nW: Rows) -> npt.NDArray[np.uint8]:
    content = hashlib.sha256(key_n.tobytes() + row_nW.tobytes())
    return np.frombuffer(content.digest(), np.uint8)
