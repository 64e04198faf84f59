"""The peak of a process's memory on a CPU, which Linux alone can also lower to what is held now."""

import ctypes
import os
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def missing() -> str | None:
    """Why no peak can be read here; None where it can."""
    if os.access(CLEAR, os.W_OK) and os.access(STATUS, os.R_OK) and _peak_line():
        return None
    return f"the peak of a CPU's memory is read from {STATUS.parent}, which this system does not have"


def lower() -> None:
    """Give free memory back to the system, and lower the peak to what is held now."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)
    CLEAR.write_text("5", encoding="ascii")


def peak_mib() -> float:
    """The most MiB that this process has held since it started, or since ``lower``.

    Raises:
        OSError: No peak can be read here; says why.
    """
    if why := missing():
        raise OSError(why)
    return int(_peak_line().split()[1]) / 1024


def _peak_line() -> str:
    lines = STATUS.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line for line in lines if line.startswith("VmHWM")), "")
