"""The one way to run models outside a training step, which training cannot notice."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lit_safe.precision import run_precision
from lit_safe.ranks import failing_together
from lit_safe.rng import isolated


@contextmanager
def quiet(module: object, seed: int, *others: object) -> Iterator[torch.device]:
    """The run's precision, no gradient, evaluation mode, random numbers of its own; all put back afterwards.

    What is compared with training's own log-probs is computed as they are: where ``module`` belongs to a trainer, under
    the trainer's autocast. Every rank enters it, and an error on one of them ends all (``lit_safe.ranks``).

    Args:
        module: A LightningModule, or anything with a ``pair``; a cost function where there is no policy.
        seed: Of the block's random numbers, usually ``hash64`` of what the block is for.
        others: What else runs in the block and may be in training mode, such as a cost function.

    Yields:
        The device of the policy, the CPU where there is none.
    """
    networks = [network for thing in (module, *others) for network in _networks(thing)]
    training = {part: part.training for network in networks for part in network.modules()}
    for network in networks:
        network.eval()
    try:
        with failing_together(), torch.no_grad(), isolated(seed), run_precision(module, device_of(module)):
            yield device_of(module)
    finally:
        for part, flag in training.items():
            part.training = flag


def device_of(module: object) -> torch.device:
    """Where the policy of ``module`` lies, or the module itself; the CPU for what has no weights."""
    for network in _networks(getattr(module, "pair", module)):
        for parameter in network.parameters():
            return parameter.device
    return torch.device("cpu")


def _networks(thing: object) -> list[nn.Module]:
    return [part for part in (thing, getattr(thing, "pair", None)) if isinstance(part, nn.Module)]
