"""SafePatching: two patches on the weights of one model, each where only it is important.

Zhao et al. 2024 (arXiv:2405.13820), known to us second-hand: a summary and reviews, no code. The functions below work
on one tensor of weights. All sizes are in the units of the weights.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lit_safe.hashing import hash64


class Patch(NamedTuple):
    """What one training has done to a tensor, and where it is important."""

    change: Tensor  # trained weight - base weight
    important: Tensor  # bool


def retained(change: Tensor, keep: float, *name: object) -> Tensor:
    """The change with each number kept with probability ``keep`` and 0 elsewhere. It is not divided by ``keep``.

    Whether the authors divide is not stated; ``alpha`` and ``beta`` of ``patched`` can.

    Args:
        change: A change of weights.
        keep: Probability in (0, 1].
        name: Purpose, seed and name of the tensor. They decide which numbers are kept, whatever was drawn before.
    """
    if keep >= 1:
        return change
    generator = torch.Generator().manual_seed(hash64("retain", *name))
    drawn = torch.rand(change.shape, generator=generator)
    return torch.where(drawn < keep, change, 0)


def snip(weight: Tensor, gradient: Tensor) -> Tensor:
    """Importance of each weight: S = |weight * dL/dweight| (SNIP; Lee et al. 2019, arXiv:1810.02340)."""
    return (weight * gradient).abs()


def top(importance: Tensor, share: float) -> Tensor:
    """Bool: the largest ``share`` of a tensor's importances. Of equals the first counts, and an importance of 0 never.

    Args:
        importance: Importances >= 0.
        share: Share of the tensor in [0, 1]; its size is rounded to a whole number.
    """
    flat = importance.flatten()
    order = flat.argsort(descending=True, stable=True)[: round(share * flat.numel())]
    found = torch.zeros_like(flat, dtype=torch.bool)
    found[order] = flat[order] > 0
    return found.view(importance.shape)


def patched(base: Tensor, safety: Patch, over_safety: Patch, alpha: float, beta: float) -> Tensor:
    """``base + alpha * P_SE[A - B] + beta * P_OS[B - A]`` (their eq. 7 and 8, second-hand), in the type of ``base``.

    A and B are the sets in which the patch against harm (``safety``) and the one against over-refusal are important.
    What is important for both keeps its base weight, so the patches never meet.
    """
    wide = torch.promote_types(base.dtype, torch.float32)
    only_safety = safety.important & ~over_safety.important
    only_over = over_safety.important & ~safety.important
    total = base.to(wide, copy=True)
    total += torch.where(only_safety, alpha * safety.change.to(wide), 0)
    total += torch.where(only_over, beta * over_safety.change.to(wide), 0)
    return total.to(base.dtype)
