"""A file of hidden states: written piece by piece, readable only when complete, read through a memory map.

Letters: T tokens, D hidden width.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

BLOCK = 2**24  # bytes that are written at a time while space is reserved


class Place(NamedTuple):
    """The tokens of a piece in a file, and the checksum (CRC-32) of their states."""

    start: int
    length: int
    checksum: int


class TrunkFile:
    """The states of the pieces in one complete file.

    Args:
        path: The index (``.npz``). The states are beside it (``.bin``).

    Raises:
        ValueError: If a file is missing, damaged or shorter than its index says. The message names it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                key_n, place_n3, width, dtype = (
                    stored["key"],
                    stored["place"],
                    int(stored["width"]),
                    str(stored["dtype"]),
                )
                whole = bool(np.array_equal(stored["sha256"], _digest(key_n, place_n3)))
            self.dtype: torch.dtype = getattr(torch, dtype)
            self._row = width * self.dtype.itemsize
            self._bytes = np.memmap(path.with_suffix(".bin"), np.uint8, mode="r")
            whole = whole and len(self._bytes) == int(place_n3[:, 1].sum()) * self._row
        except (OSError, EOFError, KeyError, ValueError, AttributeError, zipfile.BadZipFile, zlib.error):
            whole = False
        if not whole:
            raise _damaged(path)
        self.width = width
        self.places = {int(key): Place(*map(int, row)) for key, row in zip(key_n, place_n3, strict=True)}

    def read(self, key: int, into_TD: Tensor) -> None:
        """Copy the states of a piece into ``into_TD``, a contiguous tensor of its size.

        Raises:
            ValueError: If the states are not those that were written.
        """
        place = self.places[key]
        found = self._bytes[place.start * self._row : (place.start + place.length) * self._row]
        if zlib.crc32(found.data) != place.checksum:
            raise _damaged(self.path.with_suffix(".bin"))
        into_TD.view(torch.uint8).reshape(-1).numpy()[:] = found


class TrunkWriter:
    """Writes one file. A piece that was written before a run was killed is found again.

    Args:
        path: The index of the file, once it is complete.
        lengths: Tokens of each piece by its key, in the order of the file.
        width: D.
        dtype: Type of the states: float32, float16 or bfloat16.
    """

    def __init__(self, path: Path, lengths: Mapping[int, int], width: int, dtype: torch.dtype) -> None:
        self.path, self.width, self.dtype = path, width, dtype
        self._row = width * dtype.itemsize
        self._lengths = dict(lengths)
        starts = np.cumsum([0, *self._lengths.values()])
        self._starts = dict(zip(self._lengths, starts.tolist(), strict=False))
        self._size = int(starts[-1]) * self._row
        self._partial = path.with_name(f".{path.stem}-partial.bin")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._begun = self._partial.exists() and self._partial.stat().st_size == self._size
        if not self._begun:
            self._reserve()
        self._file = self._partial.open("r+b")

    def missing(self) -> set[int]:
        """Keys of the pieces that are not written yet: those with a NaN."""
        if not self._begun:
            return set(self._lengths)
        return {key for key in self._lengths if not bool(self._stored(key).isfinite().all())}

    def write(self, key: int, state_TD: Tensor) -> None:
        """Store the states of a piece. They must be finite."""
        self._file.seek(self._starts[key] * self._row)
        self._file.write(state_TD.to(self.dtype).contiguous().view(torch.uint8).numpy().tobytes())

    def finish(self) -> None:
        """Put the file in its place.

        Raises:
            RuntimeError: If a piece is not written.
        """
        self._file.flush()
        os.fsync(self._file.fileno())
        checksums, unwritten = [], 0
        for key in self._lengths:
            state_TD = self._stored(key)
            unwritten += not bool(state_TD.isfinite().all())
            checksums.append(zlib.crc32(state_TD.view(torch.uint8).numpy().tobytes()))
        self._file.close()
        if unwritten:
            raise RuntimeError(f"{unwritten} of {len(self._lengths)} pieces were not written to {self._partial}")
        os.replace(self._partial, self.path.with_suffix(".bin"))
        key_n = np.array(list(self._lengths), np.int64)
        place_n3 = np.array([list(self._starts.values()), list(self._lengths.values()), checksums], np.int64).T
        index = self.path.with_name(f".{self.path.stem}-partial.npz")
        name = str(self.dtype).removeprefix("torch.")
        np.savez(index, key=key_n, place=place_n3, width=self.width, dtype=name, sha256=_digest(key_n, place_n3))
        os.replace(index, self.path)

    def close(self) -> None:
        """Close the file, complete or not."""
        self._file.close()

    def _stored(self, key: int) -> Tensor:
        """[T, D] what the file holds for a piece."""
        self._file.seek(self._starts[key] * self._row)
        found = bytearray(self._file.read(self._lengths[key] * self._row))
        return torch.frombuffer(found, dtype=torch.uint8).view(self.dtype).view(-1, self.width)

    def _reserve(self) -> None:
        """Fill the file with NaN (every bit set), so that a full disk is an error now and not later."""
        with self._partial.open("wb") as file:
            for start in range(0, self._size, BLOCK):
                file.write(b"\xff" * min(BLOCK, self._size - start))
            file.flush()
            os.fsync(file.fileno())


def _damaged(path: Path) -> ValueError:
    return ValueError(
        f"{path}: this file of trunk states is damaged. Delete it; the next run computes the states again"
    )


def _digest(key_n: npt.NDArray[np.int64], place_n3: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    return np.frombuffer(hashlib.sha256(key_n.tobytes() + place_n3.tobytes()).digest(), np.uint8)
