"""Keep the policy among tokens that its reference finds plausible, where the pairs take it."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lit_safe.anchors import Anchor
from lit_safe.anchors.preferred_nll import prefers_chosen
from lit_safe.sequences import select_sequences
from lit_safe.types import PackedBatch, Pair

if TYPE_CHECKING:
    from lit_safe.module import PreferenceAlignment


class ReferenceSupport(Anchor):
    """Adds ``weight`` * the policy's loss of mass on plausible tokens, along the preferred response of each pair.

    At each position of that response, plausible tokens are those to which the reference gives at least ``floor``; the
    term is the sum over positions of max(0, log(reference mass / policy mass)) of all of them together. How the policy
    divides its mass among them costs nothing, nor does less mass elsewhere than the reference has, so the term's
    optimum holds any optimum of the objective that stays in the reference's support. Nothing is sampled, so nothing is
    estimated: unlike a mean of policy / reference over samples it has no variance to speak of.

    Costs a forward pass of the reference and a forward and backward pass of the policy on ``share`` of the preferred
    responses, and logits of the whole vocabulary at their positions, some at a time.

    Args:
        weight: > 0; nats of loss for a nat.
        floor: In (0, 1), a probability; below it the reference finds a token implausible.
        share: In (0, 1]: of the pairs, by hash, always the same.

    Raises:
        ValueError: If an argument lies outside its range.
    """

    def __init__(self, weight: float = 1.0, floor: float = 0.001, share: float = 1.0) -> None:
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"weight must be > 0, got {weight}")
        if not 0 < floor < 1:
            raise ValueError(f"floor must lie in (0, 1), got {floor}")
        if not 0 < share <= 1:
            raise ValueError(f"share must lie in (0, 1], got {share}")
        self.weight = weight
        self.floor = floor
        self.share = share
        self._mean = math.nan

    def on_pairs(self, module: "PreferenceAlignment", batch: PackedBatch, policy: Pair) -> Tensor | None:
        """[B] nats, 0 for pairs outside ``share``.

        Raises:
            ValueError: If ``share`` is below 1 and the batch has no draws to choose pairs by.
        """
        index_b = torch.arange(len(batch.pair_id), device=batch.pair_id.device)
        if self.share < 1:
            if batch.label.draw is None:
                raise ValueError("share < 1 needs Annotation.draw: a number in [0, 1) for each pair")
            index_b = index_b[batch.label.draw < self.share]
        if not len(index_b):
            return None
        side_b = 1 - prefers_chosen(module, batch)[index_b].long()
        lost_b = -module.pair.support_logratio(select_sequences(batch.sequences, 2 * index_b + side_b), self.floor)
        self._mean = float(lost_b.detach().mean())
        # pairs of the share speak for the others
        return torch.zeros_like(policy.chosen).index_add(0, index_b, lost_b) * (self.weight / self.share)

    def logged(self) -> dict[str, float]:
        """``anchor/lost_support``: nats a response, the mean over the last micro-batch."""
        return {} if math.isnan(self._mean) else {"anchor/lost_support": self._mean}
