"""Isolated random states: a block uses its own seed, and the previous states are restored afterwards."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Seed torch (CPU and the current GPU), NumPy and ``random`` for a block, and restore them after it.

    Args:
        seed: Any integer >= 0, usually ``hash64`` of the block's purpose.
    """
    python, numpy = random.getstate(), np.random.get_state()
    # each process uses one device; saving the states of other devices would create a context on each
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices), _apples_gpu(seed):
        torch.random.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def _apples_gpu(seed: int) -> Iterator[None]:
    """The same for the generator of an Apple GPU, which ``fork_rng`` does not support."""
    if not torch.backends.mps.is_available():
        yield
        return
    state = torch.mps.get_rng_state()
    torch.mps.manual_seed(seed)
    try:
        yield
    finally:
        torch.mps.set_rng_state(state)
