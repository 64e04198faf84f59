"""Reads and writes checkpoint files with checksums, and extracts the weights that a run ships."""

import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from lit_safe.runs.background import snapshot

FOLDER = "checkpoints"
LAST, BEST = "last.ckpt", "best.ckpt"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read or written. The message is one sentence that names the file."""


class CheckpointFiles(TorchCheckpointIO):
    """Writes checkpoints directly into their folder, tensor by tensor, and verifies checksums when reading.

    Lightning's own writer builds the whole file in memory first and writes it to ``$TMPDIR``.
    """

    def __init__(self) -> None:
        super().__init__()
        self._holding = False
        self._held: dict[str, Any] | None = None

    @contextmanager
    def holding(self) -> Iterator[None]:
        """A block in which a checkpoint to save is not written, but copied for ``held``."""
        self._holding, self._held = True, None
        try:
            yield
        finally:
            self._holding = False

    def held(self) -> dict[str, Any] | None:
        """The copy made in the last block ``holding``, given away; None on ranks that write nothing."""
        found, self._held = self._held, None
        return found

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``path``. A failed write leaves no partial file.

        Raises:
            CheckpointError: If the disk is full or the folder cannot be written. The message names the path.
        """
        if self._holding:
            self._held = snapshot(checkpoint)
            return
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """Read ``path`` completely.

        Raises:
            CheckpointError: If the file is not a checkpoint, or is damaged.
        """
        if "://" in str(path):
            return super().load_checkpoint(path, map_location, weights_only)
        return load_checkpoint(Path(path), map_location=map_location, weights_only=weights_only is not False)


def write_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write ``path`` without a second copy of the checkpoint in memory.

    Raises:
        CheckpointError: If the disk is full or the folder cannot be written.
    """
    written: _Watched | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            written = _Watched(file)
            torch.save(dict(checkpoint), written)  # type: ignore[arg-type]  # it calls only these methods of a file
    except BaseException as error:
        cause = written.failure if written is not None and written.failure is not None else error
        path.unlink(missing_ok=True) if written is not None else None
        if isinstance(cause, OSError):
            raise CheckpointError(f"cannot write the checkpoint {path}: {cause.strerror or cause}") from error
        raise


def load_checkpoint(path: str | Path, *, map_location: Any = "cpu", weights_only: bool = True) -> dict[str, Any]:
    """Load a checkpoint after verifying all checksums. Nothing else would detect a flipped byte in the weights.

    Raises:
        CheckpointError: If the file does not exist, is not a checkpoint, or is damaged. The message names it.
    """
    verify(Path(path))
    return _read(Path(path), map_location=map_location, weights_only=weights_only)


def glance(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint with its tensors left on disk (memory-mapped), to read only settings and counts.

    Raises:
        CheckpointError: If the file does not exist or is not a checkpoint.
    """
    return _read(Path(path), map_location="cpu", weights_only=True, mmap=True)


def verify(path: Path) -> None:
    """Verify all checksums in a checkpoint.

    Raises:
        CheckpointError: If a checksum is wrong, or the file does not have the format of a checkpoint.
    """
    _is_checkpoint(path)
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    # a flipped byte in a header may name an encryption (RuntimeError) or a compression that zipfile does not know
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, NotImplementedError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): continue from another checkpoint") from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged (wrong checksum of {damaged}): continue from another checkpoint")


def shipped(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The weights (state dict) that a run ships according to ``dual.ship``: the iterate or the average.

    A checkpoint contains the iterate, from which a run continues. The average is in the state of ``DualAscent``.
    """
    weights: dict[str, Any] = dict(checkpoint["state_dict"])
    state = checkpoint.get("callbacks", {}).get("DualAscent", {})
    average: Mapping[str, Any] = state.get("mean", {}) if state.get("count") else {}
    for name, value in average.items():
        if name in weights:
            weights[name] = value.to(weights[name].dtype)
    return weights


class _Watched:
    """A file that stores the error of a failed write, because torch replaces the system's error."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.failure: OSError | None = None

    def write(self, part: Any) -> int:
        try:
            return self._file.write(part)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        self._file.flush()


def _is_checkpoint(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    if not path.stat().st_size:
        raise CheckpointError(f"{path} is empty: continue from another checkpoint")
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is not a checkpoint, or only part of one")


def _read(path: Path, **options: Any) -> dict[str, Any]:
    _is_checkpoint(path)
    try:
        read = torch.load(path, **options)
    except pickle.UnpicklingError as error:
        first = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"{path} contains more than tensors and plain values, or is damaged: {first}") from error
    except (RuntimeError, OSError, EOFError, KeyError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"{path} is not a checkpoint, or is damaged: {first}") from error
    if not isinstance(read, dict) or "state_dict" not in read:
        raise CheckpointError(f"{path} is not a checkpoint of a run: it has no state_dict")
    return read
