"""Moves the files of an earlier run out of the way of a new one."""

import logging
import os
from pathlib import Path

from lit_safe import run_lock

log = logging.getLogger(__name__)

CONFIG = "config.yaml"
MARKS = ("checkpoints", "metrics.csv", "tensorboard", CONFIG)
"""What a run leaves in its folder. A folder with none of these is no earlier run, and stays where it is."""
EARLIER = "earlier."


def move_aside(folder: Path) -> Path | None:
    """Move an earlier run in ``folder`` to ``<folder>.<n>`` with the first free n >= 1.

    Some folders cannot be renamed: mount points, symbolic links, those of a parent that cannot be written, those whose
    names leave no room. They keep their place, and their contents move to ``<folder>/earlier.<n>``.

    Returns:
        The new place of the earlier run, or None if there was none.

    Raises:
        RunFolderError: If neither is possible.
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
        raise OSError("others know it by its place")
    return folder.rename(_free(folder.parent, f"{folder.name}."))


def _emptied(folder: Path) -> Path:
    aside = _free(folder, EARLIER)
    aside.mkdir()
    entries = [path for path in folder.iterdir() if not path.name.startswith(EARLIER)]
    entries = [path for path in entries if path.name not in run_lock.FILES]
    for path in sorted(entries, key=lambda path: path.name in MARKS):  # a kill before the marks move leaves a run
        path.rename(aside / path.name)
    return aside


def _free(parent: Path, prefix: str) -> Path:
    n = 1
    while (path := parent / f"{prefix}{n}").exists():
        n += 1
    return path
