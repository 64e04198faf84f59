"""The peak of a process's CPU memory. On Linux it can also be reset to the current use."""

import ctypes
import os
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def missing() -> str | None:
    """Why no peak can be read here; None if it can."""
    if os.access(CLEAR, os.W_OK) and os.access(STATUS, os.R_OK) and _peak_line():
        return None
    return f"the peak of a CPU's memory is read from {STATUS.parent}, which this system does not have"


def lower() -> None:
    """Return free memory to the system, and reset the peak to the current use."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)
    CLEAR.write_text("5", encoding="ascii")


def peak_mib() -> float:
    """The maximum memory of this process in MiB since it started, or since ``lower``.

    Raises:
        OSError: No peak can be read here. The message gives the reason.
    """
    if why := missing():
        raise OSError(why)
    return int(_peak_line().split()[1]) / 1024


def _peak_line() -> str:
    lines = STATUS.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line for line in lines if line.startswith("VmHWM")), "")
