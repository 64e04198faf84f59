"""Who may read the files of a folder that a library wrote."""

import stat
from pathlib import Path


def open_to_readers(folder: Path) -> None:
    """Give every file of ``folder`` the mode of a new file: the writer of safetensors lets its owner alone read."""
    probe = folder / ".mode"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in folder.iterdir():
        if path.is_file():
            path.chmod(mode)
