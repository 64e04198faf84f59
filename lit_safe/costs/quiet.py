"""The one way to run models outside a training step, which training cannot notice; and how ranks share a pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lit_safe.costs import Aligned
from lit_safe.precision import run_precision
from lit_safe.rng import isolated

T = TypeVar("T")


@contextmanager
def quiet(module: Aligned, seed: int) -> Iterator[None]:
    """The run's precision, no gradient, eval mode, random state seeded with ``seed``; all put back afterwards.

    What is compared with training's own log-probs is computed as they are: where ``module`` belongs to a trainer, under
    the trainer's autocast.
    """
    pair = _network(module)
    training = {part: part.training for part in pair.modules()}
    pair.eval()
    try:
        with torch.no_grad(), isolated(seed), run_precision(module):
            yield
    finally:
        for part, flag in training.items():
            part.training = flag


def device_of(module: Aligned) -> torch.device:
    """Where the policy lies."""
    return next(_network(module).parameters()).device


def _network(module: Aligned) -> nn.Module:
    assert isinstance(module.pair, nn.Module)
    return module.pair


def rank_and_world() -> tuple[int, int]:
    """This process and how many there are; (0, 1) outside a distributed run."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather(rows: Tensor, device: torch.device) -> Tensor:
    """The rows [n, ...] of all ranks, rank by rank, alike everywhere; each rank brings as many."""
    world = rank_and_world()[1]
    if world == 1:
        return rows
    own = rows.to(device)
    parts = [torch.empty_like(own) for _ in range(world)]
    dist.all_gather(parts, own)
    return torch.cat(parts).to(rows.device)


def of_first_rank(value: T) -> T:
    """What the first rank brings, on every rank."""
    if rank_and_world()[1] == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def merge(rows: Tensor, device: torch.device) -> Tensor:
    """Rows that ranks filled in turn, zero where another rank's turn was: all of them, alike to the bit everywhere."""
    if rank_and_world()[1] == 1:
        return rows
    shared = rows.to(device)
    dist.all_reduce(shared)
    return shared.to(rows.device)
