"""Moves the files of an earlier run, to make room for a new one."""

import logging
import os
from pathlib import Path

from lit_safe.runs import run_lock

log = logging.getLogger(__name__)

CONFIG = "config.yaml"
MARKS = ("checkpoints", "metrics.csv", "tensorboard", CONFIG)
"""Files and folders that mark a run folder. A folder without any of them is not moved."""
EARLIER = "earlier."


def move_aside(folder: Path) -> Path | None:
    """Move an earlier run in ``folder`` to ``<folder>.<n>`` with the first free n >= 1.

    Some folders cannot be renamed: mount points, symbolic links, folders in a read-only parent, folders whose name has
    the maximum length. The contents of such a folder are moved to ``<folder>/earlier.<n>``.

    Returns:
        The new path of the earlier run, or None if there was none.

    Raises:
        RunFolderError: If the run can be moved in neither way.
    """
    if not any((folder / mark).exists() for mark in MARKS):
        return None
    try:
        aside = _renamed(folder)
    except OSError as error:
        log.debug("%s cannot be renamed (%s)", folder, error)
        try:
            aside = _emptied(folder)
        except OSError as failure:
            raise run_lock.unwritable(folder, failure) from None
    log.info("%s holds an earlier run: moved to %s", folder, aside)
    return aside


def _renamed(folder: Path) -> Path:
    if folder.is_symlink() or os.path.ismount(folder):
        raise OSError("a symbolic link or mount point")
    return folder.rename(_free(folder.parent, f"{folder.name}."))


def _emptied(folder: Path) -> Path:
    aside = _free(folder, EARLIER)
    aside.mkdir()
    entries = [path for path in folder.iterdir() if not path.name.startswith(EARLIER)]
    entries = [path for path in entries if path.name not in run_lock.FILES]
    for path in sorted(entries, key=lambda path: path.name in MARKS):  # marks last, so a kill leaves a run
        path.rename(aside / path.name)
    return aside


def _free(parent: Path, prefix: str) -> Path:
    n = 1
    while (path := parent / f"{prefix}{n}").exists():
        n += 1
    return path
