"""Keeps the policy's probability mass on tokens that the reference finds plausible."""

import math

import torch
from torch import Tensor

from lit_safe.anchors import Anchor, Anchored
from lit_safe.hashing import uniform
from lit_safe.sequences import select_sequences
from lit_safe.types import ChosenPairs, Measured, PackedBatch, Pair


class ReferenceSupport(Anchor):
    """Adds ``weight`` * the policy's loss of mass on plausible tokens, along both responses of each pair.

    At each position of a response, a token is plausible if the reference gives it a probability of at least ``floor``.
    The term is the sum over positions of max(0, log(reference mass / policy mass)), where the mass is the total
    probability of all plausible tokens. It is 0 however the policy divides its mass among plausible tokens, and if the
    policy has less mass on implausible tokens than the reference. Every optimum of the objective within the reference's
    support is therefore also an optimum of this term. Nothing is sampled, so the term has no sampling variance, unlike
    a mean of policy / reference over samples.

    Both responses count equally. The mass that training takes from the tokens of a rejected response is what moves to
    implausible tokens, at positions that the preferred response may not contain.

    Cost: a forward pass of the reference and a forward and backward pass of the policy on ``share`` of the pairs.
    Logits of the full vocabulary at their positions are computed in blocks.

    Args:
        weight: Weight of the term, > 0: nats of loss per nat.
        floor: Probability in (0, 1). Tokens with a lower probability under the reference are implausible.
        share: Share of the pairs in (0, 1] that the term uses. A hash of the run's seed and the pair chooses them; they
            are the same in every epoch.

    Raises:
        ValueError: If an argument is outside its range.
    """

    names = ("anchor/lost_support",)
    reads_reference = True

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
        self._lost: list[Measured] = []  # one entry per micro-batch of the step

    def choose(self, module: Anchored, batch: PackedBatch) -> ChosenPairs | None:
        """The pairs in ``share``; None if that is all of them."""
        return self._chosen(module, batch) if self.share < 1 else None

    def _chosen(self, module: Anchored, batch: PackedBatch) -> ChosenPairs:
        """It reads ids from the batch's device if ``share`` is below 1."""
        index_b = torch.arange(len(batch.pair_id), device=batch.pair_id.device)
        if self.share == 1:
            return ChosenPairs(index_b, batch.sequences)
        # not ``Annotation.draw``: it decides sampled labels, so the chosen pairs would have similar labels
        chosen_B = [uniform("support-share", module.seed, pair) < self.share for pair in batch.pair_id.tolist()]
        index_b = index_b[torch.tensor(chosen_B, dtype=torch.bool, device=index_b.device)]
        both_n = torch.stack([2 * index_b, 2 * index_b + 1], dim=1).flatten()
        return ChosenPairs(index_b, select_sequences(batch.sequences, both_n))

    def on_pairs(self, module: Anchored, batch: PackedBatch, policy: Pair) -> Tensor | None:
        """The term of each pair, [B] nats; 0 for pairs outside ``share``."""
        index_b, sequences = batch.anchored or self._chosen(module, batch)
        if not len(index_b):
            return None
        kept_n = module.pair.support_logratio(sequences, self.floor)
        lost_b = -kept_n.view(-1, 2).mean(-1)
        self._lost.append(Measured(lost_b.detach(), batch.present[index_b]))
        # divided by ``share``, so that the chosen pairs represent all pairs
        return torch.zeros_like(policy.chosen).index_add(0, index_b, lost_b) * (self.weight / self.share)

    def logged(self) -> dict[str, Measured]:
        """``anchor/lost_support``: nats per response, of the last step's pairs in ``share``."""
        lost, self._lost = self._lost, []
        if not lost:
            return {name: Measured(torch.zeros(0), torch.zeros(0)) for name in self.names}
        return {"anchor/lost_support": Measured(*(torch.cat(parts) for parts in zip(*lost, strict=True)))}
