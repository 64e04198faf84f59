"""Keep the policy among tokens that its reference finds plausible, wherever the pairs push it."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lit_safe.anchors import Anchor
from lit_safe.hashing import uniform
from lit_safe.metrics import Measured
from lit_safe.sequences import select_sequences
from lit_safe.types import PackedBatch, Pair

if TYPE_CHECKING:
    from lit_safe.module import PreferenceAlignment


class ReferenceSupport(Anchor):
    """Adds ``weight`` * the policy's loss of mass on plausible tokens, along both responses of each pair.

    At each position of a response, plausible tokens are those to which the reference gives at least ``floor``; the
    term is the sum over positions of max(0, log(reference mass / policy mass)) of all of them together. How the policy
    divides its mass among them costs nothing, nor does less mass elsewhere than the reference has, so the term's
    optimum holds any optimum of the objective that stays in the reference's support. Nothing is sampled, so nothing is
    estimated: unlike a mean of policy / reference over samples it has no variance to speak of.

    The rejected response counts as much as the preferred one: the mass that a pair takes from its tokens is what spills
    over, and it does so at positions that a preferred response may never come to.

    Costs a forward pass of the reference and a forward and backward pass of the policy on ``share`` of the pairs, and
    logits of the whole vocabulary at their positions, some at a time.

    Args:
        weight: > 0; nats of loss for a nat.
        floor: In (0, 1), a probability; below it the reference finds a token implausible.
        share: In (0, 1]: of the pairs, by a hash of the run's seed and the pair: the same in every epoch.

    Raises:
        ValueError: If an argument lies outside its range.
    """

    names = ("anchor/lost_support",)

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
        self._lost: list[Measured] = []  # of the step's micro-batches

    def on_pairs(self, module: "PreferenceAlignment", batch: PackedBatch, policy: Pair) -> Tensor | None:
        """[B] nats, 0 for pairs outside ``share``."""
        index_b = torch.arange(len(batch.pair_id), device=batch.pair_id.device)
        if self.share < 1:
            # a draw of its own: ``Annotation.draw`` decides sampled labels, and pairs chosen by it would be of one kind
            chosen_B = [uniform("support-share", module.seed, pair) < self.share for pair in batch.pair_id.tolist()]
            index_b = index_b[torch.tensor(chosen_B, device=index_b.device)]
        if not len(index_b):
            return None
        both_n = torch.stack([2 * index_b, 2 * index_b + 1], dim=1).flatten()
        kept_n = module.pair.support_logratio(select_sequences(batch.sequences, both_n), self.floor)
        lost_b = -kept_n.view(-1, 2).mean(-1)
        self._lost.append(Measured(lost_b.detach(), batch.present[index_b]))
        # pairs of the share speak for the others
        return torch.zeros_like(policy.chosen).index_add(0, index_b, lost_b) * (self.weight / self.share)

    def logged(self) -> dict[str, Measured]:
        """``anchor/lost_support``: nats a response, of the pairs in the share that count in the last step."""
        lost, self._lost = self._lost, []
        if not lost:
            return {name: Measured(torch.zeros(0), torch.zeros(0)) for name in self.names}
        return {"anchor/lost_support": Measured(*(torch.cat(parts) for parts in zip(*lost, strict=True)))}
