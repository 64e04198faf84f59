"""Reads the memory of this process and of the machine, on all operating systems."""

import sys
from pathlib import Path

import psutil
import torch


def peak_bytes() -> int:
    """Peak memory of this process in bytes. On systems that do not report it: the current memory."""
    try:
        import resource  # not on Windows
    except ImportError:
        held = psutil.Process().memory_info()
        return int(getattr(held, "peak_wset", held.rss))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB elsewhere


def limit_bytes() -> int:
    """Memory available to this process in bytes: the machine's, or its container's limit if that is lower."""
    physical = int(psutil.virtual_memory().total)
    limit = Path("/sys/fs/cgroup/memory.max")  # of a Linux container
    text = limit.read_text(encoding="ascii").strip() if limit.exists() else "max"
    return physical if text == "max" else min(physical, int(text))


def available_bytes(device: torch.device) -> int:
    """Memory of a device in bytes, whether in use or not. For a CPU see ``limit_bytes``."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else limit_bytes()
