"""File operations for the loggers of a run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = ".tmp"
"""Suffix of temporary files that replace another file. A killed run may leave them."""

ELSEWHERE = "To continue without it, give a new folder with --trainer.default_root_dir and the same --ckpt_path"
"""Advice for continuing from a checkpoint whose logs are damaged."""


def inside(folder: Path, path: Path) -> Path:
    """Resolve ``path``, which comes from a file that may not be trusted.

    Raises:
        ValueError: If it is outside ``folder``.
    """
    resolved = path.resolve()
    if not resolved.is_relative_to(folder.resolve()):
        raise ValueError(f"the checkpoint names {path}, which is outside {folder}: it was not written by this run")
    return resolved


def sync(path: Path) -> None:
    """Sync a file and its folder entry to disk, so that a power failure loses neither."""
    with path.open("r+b") as file:  # Windows can sync only writable handles
        os.fsync(file.fileno())
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Add the file's name to disk errors, because the system does not name it when a write fails."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
