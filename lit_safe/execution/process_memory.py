"""Reads the memory of this process and of the machine, on all operating systems."""

import sys
from pathlib import Path

import psutil
import torch

GROUP = ("memory.max", "memory.current", "memory.stat")  # of a Linux container


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


def free_bytes(device: torch.device) -> int:
    """Memory in bytes that this process can still take on a device.

    On a CPU it is what the system can give without swapping, or what is left of a Linux container's limit if that is
    less. On CUDA it includes what torch has reserved and does not use.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    free = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    texts = [path.read_text(encoding="ascii") for name in GROUP if (path := group / name).exists()]
    if len(texts) < len(GROUP) or texts[0].strip() == "max":
        return free
    limit, used, stat = texts
    files = next((int(line.split()[1]) for line in stat.splitlines() if line.startswith("inactive_file ")), 0)
    return min(free, max(0, int(limit) - int(used) + files))  # the kernel drops cached files where memory is short


def available_bytes(device: torch.device) -> int:
    """Memory of a device in bytes, whether in use or not. For a CPU see ``limit_bytes``."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else limit_bytes()
