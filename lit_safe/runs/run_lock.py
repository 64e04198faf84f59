"""The lock that makes a run folder the folder of one live process."""

import getpass
import json
import logging
import os
import shlex
import socket
import sys
import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

LOCK = ".run.lock"
HOLDER = ".run.holder.json"
FILES = (LOCK, HOLDER)
"""Files of a live run in its folder, besides its results. Both are removed when the run ends."""


class RunFolderError(RuntimeError):
    """The run folder is used by another run, or cannot be written. The one-line message says what to do."""


class RunLock:
    """Holds a folder for this process until ``release``.

    The operating system keeps the lock, not a file's existence. A killed process therefore leaves no lock behind, only
    a file that the next run takes over. The process that holds the lock is named in ``.run.holder.json``.

    Args:
        folder: The folder. It is created if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock: FileLock | None = None
        self._created: list[Path] = []

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            RunFolderError: If another live process holds the lock, or the folder cannot be written.
        """
        if self._lock is not None:
            return
        try:
            self._created = _make(self.folder)
            lock = FileLock(self.folder / LOCK, timeout=0, thread_local=False)
            lock.acquire()
        except Timeout:
            raise RunFolderError(
                f"{self.folder} is the folder of a live run, {_holder(self.folder)}: {ADVICE}"
            ) from None
        except OSError as error:
            self._remove_created()
            raise unwritable(self.folder, error) from None
        self._lock = lock
        holder = {"process": os.getpid(), "host": socket.gethostname(), "user": _user(), "started": time.time()}
        try:
            (self.folder / HOLDER).write_text(
                json.dumps({**holder, "command": shlex.join(sys.argv)}) + "\n", encoding="utf-8"
            )
        except OSError as error:
            self.release()
            raise unwritable(self.folder, error) from None

    def move(self, folder: Path) -> None:
        """Say that the locked folder was renamed to ``folder``. The lock stays on it."""
        self.folder, self._created = folder, []

    def release(self) -> None:
        """Give the folder free. If this process created it and nothing else is in it, remove it."""
        if self._lock is None:
            return
        lock, self._lock = self._lock, None
        for name in FILES:  # while the lock is held: a process that waits notices that its file is gone
            try:
                (self.folder / name).unlink(missing_ok=True)
            except OSError:
                log.debug("%s stays: it cannot be removed", self.folder / name)
        lock.release()
        self._remove_created()

    def _remove_created(self) -> None:
        for folder in reversed(self._created):
            try:
                folder.rmdir()
            except OSError:
                break  # it is in use
        self._created = []

    def __getstate__(self) -> dict[str, Any]:
        """A copy in a process that this one spawned relies on this process's lock."""
        return {"folder": self.folder, "_lock": None, "_created": []}


ADVICE = "wait for its end, stop it, or name another folder with --trainer.default_root_dir"


def unwritable(path: Path, error: OSError) -> RunFolderError:
    """What to raise where ``path``, in a run folder, cannot be written."""
    return RunFolderError(
        f"{path} cannot be written ({error.strerror or error}): fix this, or name another folder with "
        "--trainer.default_root_dir"
    )


def check_writable(folder: Path) -> None:
    """Create a file in ``folder`` and remove it again.

    Raises:
        RunFolderError: If that fails.
    """
    probe = folder / f".probe-{os.getpid()}"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise unwritable(folder, error) from None


def _make(folder: Path) -> list[Path]:
    """Create ``folder`` and return the folders that this took, from the outermost."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


def _holder(folder: Path) -> str:
    try:
        holder = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder["started"]))
        return f"process {holder['process']} of {holder['user']} on {holder['host']} since {since}"
    except (OSError, ValueError, KeyError, TypeError):
        return "which has not recorded its process yet"


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container may have no name for its user
        return "an unnamed user"
