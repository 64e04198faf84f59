"""The memory of this process and of the machine, on every system."""

import sys
from pathlib import Path

import psutil


def peak_bytes() -> int:
    """The most bytes of memory that this process has held at once. Where no system call tells: what it holds now."""
    try:
        import resource  # not on Windows
    except ImportError:
        held = psutil.Process().memory_info()
        return int(getattr(held, "peak_wset", held.rss))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB elsewhere


def limit_bytes() -> int:
    """The bytes of memory that this process may use: the machine's, or its container's where that has fewer."""
    physical = int(psutil.virtual_memory().total)
    limit = Path("/sys/fs/cgroup/memory.max")  # of a Linux container
    text = limit.read_text(encoding="ascii").strip() if limit.exists() else "max"
    return physical if text == "max" else min(physical, int(text))
