"""Processes that meet over gloo, for tests that need two ranks."""

import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist


def run_on_two_ranks(what: Callable[[int], None], folder: Path) -> None:
    """Calls ``what(rank)`` in two processes that meet by a file in ``folder``; raises what either of them raises."""
    torch.multiprocessing.spawn(_rank, (str(folder / "store"), what), nprocs=2)


def _rank(rank: int, store: str, what: Callable[[int], None]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        what(rank)
    finally:
        dist.destroy_process_group()
    # A thread of gloo may still hold Python objects of the last exchange. Up to Python 3.13 the interpreter ends such
    # a thread while it waits for the GIL, which aborts the process: a rank that is done leaves without finalising.
    os._exit(0)
