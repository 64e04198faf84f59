"""Adds the negative log-likelihood of the preferred response to the loss."""

import math

import torch
from torch import Tensor

from lit_safe.anchors import Anchor, Anchored
from lit_safe.types import PackedBatch, Pair


class PreferredNLL(Anchor):
    """Adds ``weight`` * -logp / tokens of the preferred response to each pair's loss.

    This is the term of iterative RPO (Pang et al. 2024, arXiv:2404.19733, eq. 1), generalised to any objective. The
    preferred response is the one whose log-prob the objective increases at margin 0. With SafeDPO it is the safe
    response of a swapped pair; with C-DPO it depends on the multiplier. The term has its own optimum, so it changes the
    optimum of the total loss.

    Args:
        weight: Weight of the term, > 0: nats of loss per nat per token.

    Raises:
        ValueError: If ``weight`` is not > 0.
    """

    def __init__(self, weight: float = 0.03) -> None:
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"weight must be > 0, got {weight}")
        self.weight = weight

    def on_pairs(self, module: Anchored, batch: PackedBatch, policy: Pair) -> Tensor:
        """The term of each pair, [B] nats."""
        per_token = Pair(*(logp / size.clamp(min=1) for logp, size in zip(policy, batch.response_length, strict=True)))
        # Pang et al. eq. 1, second term
        return -self.weight * torch.where(prefers_chosen(module, batch), per_token.chosen, per_token.rejected)


def prefers_chosen(module: Anchored, batch: PackedBatch) -> Tensor:
    """[B] bool: True where the objective increases the chosen response's log-prob at margin 0, not the rejected's."""
    with torch.enable_grad():
        margin_B = torch.zeros_like(batch.pair_id, dtype=torch.float32).requires_grad_()
        scored = module.objective(Pair(margin_B, torch.zeros_like(margin_B)), batch.label, module.multiplier)
        (slope_B,) = torch.autograd.grad(scored.loss.nansum(), margin_B)
    return slope_B <= 0
