"""What the loggers of a run ask of their files."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = ".tmp"
"""Suffix of files that a run replaces another one by. A killed run may leave them."""

ELSEWHERE = "To continue without it, name a fresh folder with --trainer.default_root_dir beside the same --ckpt_path"
"""How to go on from a checkpoint whose logs are damaged."""


def inside(folder: Path, path: Path) -> Path:
    """Resolve ``path``, a name from a file that others may have written.

    Raises:
        ValueError: If it lies outside ``folder``.
    """
    resolved = path.resolve()
    if not resolved.is_relative_to(folder.resolve()):
        raise ValueError(f"the checkpoint names {path}, which is outside {folder}: it was not written by this run")
    return resolved


def sync(path: Path) -> None:
    """Put a file on disk, and its entry in its folder, so that a power cut loses neither."""
    with path.open("r+b") as file:  # Windows syncs no handle that cannot write
        os.fsync(file.fileno())
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Let an error of the disk name the file, which the system does not do when a write fails."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
