"""Runs models outside training steps without affecting training."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from lit_safe.execution.ranks import failing_together
from lit_safe.execution.rng import isolated
from lit_safe.precision import run_precision
from lit_safe.protocols.pair import Shardable


@contextmanager
def quiet(module: object, seed: int, *others: object) -> Iterator[torch.device]:
    """A block without gradient, in evaluation mode, with its own random numbers. Everything is restored afterwards.

    If ``module`` belongs to a trainer, the trainer's autocast is used, so log-probs are comparable with those of
    training. All ranks must enter the block. An error on one rank ends it on all ranks (``lit_safe.execution.ranks``).

    Args:
        module: A LightningModule, an object with a ``pair``, or a cost function if there is no policy.
        seed: Seed of the block's random numbers, usually ``hash64`` of the block's purpose.
        others: Other objects that run in the block and may be in training mode, such as a cost function.

    Yields:
        The device of the policy; the CPU if there is none.
    """
    networks = [network for thing in (module, *others) for network in _networks(thing)]
    training = {part: part.training for network in networks for part in network.modules()}
    for network in networks:
        network.eval()
    try:
        with (
            torch.no_grad(),
            _whole(module),
            failing_together(),
            isolated(seed),
            run_precision(module, device_of(module)),
        ):
            yield device_of(module)
    finally:
        for part, flag in training.items():
            part.training = flag


def _whole(module: object) -> AbstractContextManager[None]:
    """A block in which the weights are whole, because ranks may compute different numbers of passes in it."""
    pair = getattr(module, "pair", module)
    return pair.whole_weights() if isinstance(pair, Shardable) else nullcontext()


def device_of(module: object) -> torch.device:
    """The device of the policy of ``module``, or of the module itself; the CPU if it has no weights."""
    for network in _networks(getattr(module, "pair", module)):
        for parameter in network.parameters():
            return parameter.device
    return torch.device("cpu")


def _networks(thing: object) -> list[nn.Module]:
    return [part for part in (thing, getattr(thing, "pair", None)) if isinstance(part, nn.Module)]
