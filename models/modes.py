"""File permissions of folders written by libraries."""

import stat
from pathlib import Path


def open_to_readers(folder: Path) -> None:
    """Give every file of ``folder`` the mode of a new file; safetensors writes files that only the owner can read."""
    probe = folder / ".mode"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in folder.iterdir():
        if path.is_file():
            path.chmod(mode)
