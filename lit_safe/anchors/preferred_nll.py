"""Adds the negative log-likelihood of the preferred response to the loss."""

import math

import torch
from torch import Tensor

from lit_safe.anchors import Anchor, Anchored
from lit_safe.protocols.objective import score
from lit_safe.types import Extra, PackedBatch, Pair


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
    """[B] bool: True where the objective increases the chosen response's log-prob at margin 0, not the rejected's.

    An objective that reads the policy's log-probs is asked where every token of both responses has -1 nat.
    """
    with torch.enable_grad():
        margin_B = torch.zeros_like(batch.pair_id, dtype=torch.float32).requires_grad_()
        base = Pair(*(-length_B.to(margin_B) for length_B in batch.response_length))  # 1 nat per token
        ratio, logp = (Pair(at.chosen + margin_B, at.rejected) for at in (Pair(*map(torch.zeros_like, base)), base))
        extra = Extra(policy_logp=logp, length=batch.response_length, mismatched_logratio=margin_B.new_zeros(()))
        scored = score(module.objective, logp, ratio, batch.label, module.multiplier, extra)
        (slope_B,) = torch.autograd.grad(scored.loss.nansum(), margin_B)
    return slope_B <= 0
