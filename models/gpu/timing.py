"""Times work on a device, and measures the two rates that bound it."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch


class Ceilings(NamedTuple):
    """The largest rates that were measured on this device."""

    matmul: float  # operations per second of a square product in the benchmark's dtype
    copy: float  # bytes per second, read and written


def seconds(work: Callable[[], object], device: str) -> float:
    """Seconds of one call, after all earlier work on the device has finished."""
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - start


def wait(device: str) -> None:
    """Wait until the device has finished its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def take_turns(running: Mapping[str, Callable[[], object]], rounds: int, device: str) -> dict[str, float]:
    """Median seconds of each, measured round by round, so that other load affects all. The first round warms up."""
    taken: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(rounds + 1):
        for name, work in running.items():
            taken[name].append(seconds(work, device))
    return {name: statistics.median(times[1:]) for name, times in taken.items()}


def ceilings(device: str, dtype: torch.dtype) -> Ceilings:
    """Measure a product of random square matrices and a copy, each far larger than a cache on a GPU."""
    size = 8192 if device == "cuda" else 512
    one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(one)
    source = torch.randn(2**28 if device == "cuda" else 2**22, device=device)
    target = torch.empty_like(source)
    best = {
        name: min(seconds(work, device) for _ in range(8))
        for name, work in {
            "matmul": lambda: torch.mm(one, other, out=product),
            "copy": lambda: target.copy_(source),
        }.items()
    }
    return Ceilings(2 * size**3 / best["matmul"], 2 * source.numel() * source.element_size() / best["copy"])
