"""Resolves ``--ckpt_path`` to a file."""

import logging
import zipfile
from pathlib import Path

from lit_safe.runs.checkpoints import BEST, FOLDER, LAST

log = logging.getLogger(__name__)

AUTO = "auto"
"""Word for the newest checkpoint, or none."""

NAMES = {"last": LAST, "best": BEST}
"""Short names for files in a run folder's ``checkpoints/``."""


def newest_checkpoint(run: Path) -> str | None:
    """The newest whole checkpoint of a run folder, for ``--ckpt_path auto``; None if it has none.

    Files that are not whole are named in the log. A file system that fails can leave such a file.
    """
    folder = run / FOLDER
    found = sorted(folder.glob("*.ckpt"), key=lambda path: (path.stat().st_mtime_ns, path.name == LAST), reverse=True)
    for path in found:
        if zipfile.is_zipfile(path):
            log.info("--ckpt_path auto: continuing from %s", path)
            return str(path)
        log.warning("--ckpt_path auto: %s is not a checkpoint, or only part of one: trying an older one", path)
    log.info("--ckpt_path auto: there is no checkpoint in %s, so the run begins", folder)
    return None


def resolve_checkpoint(typed: str, run: Path) -> str:
    """Find the file that ``--ckpt_path`` names.

    Args:
        typed: ``last``, ``best`` or a path.
        run: The run folder to which ``last`` and ``best`` refer.

    Returns:
        The path of a file that exists.

    Raises:
        FileNotFoundError: If there is no such file. The one-line message lists the checkpoints that exist.
        ValueError: For values that are not local files, but that Lightning accepts: a URL, ``hpc``, a registry.
    """
    if "://" in typed or typed == "hpc" or typed.partition(":")[0] == "registry":
        raise ValueError(f"--ckpt_path {typed}: only local files can be read: download it and give its path")
    path = run / FOLDER / NAMES[typed] if typed in NAMES else Path(typed)
    if path.is_file():
        return str(path)
    if path.is_dir():
        raise FileNotFoundError(f"--ckpt_path {typed}: {path} is a folder{_there(path)}")
    word = "" if typed not in NAMES else f"--ckpt_path {typed}: "
    raise FileNotFoundError(f"{word}there is no {path}{_there(path.parent)}")


def _there(folder: Path) -> str:
    """The checkpoints in the folder or its ``checkpoints/``, as the end of a message."""
    if not folder.is_dir():
        return f" (nor a folder {folder})"
    found = sorted({*folder.glob("*.ckpt"), *folder.glob(f"{FOLDER}/*.ckpt")})
    if not found:
        return " (there are no checkpoints)"
    return f"; there is {', '.join(str(path.relative_to(folder)) for path in found)}"
