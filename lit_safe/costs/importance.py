"""E[cost] from labelled responses of the reference, reweighted to the policy: no sampling, and a narrow range.

Letters: B pairs, N = 2B responses of a batch, n responses of the split, C constraints.
"""

import torch
from torch import Tensor

from lit_safe.costs import Aligned, HeldOut
from lit_safe.costs.clusters import weighted_mean
from lit_safe.costs.quiet import device_of, merge, quiet, rank_and_world
from lit_safe.hashing import hash64
from lit_safe.types import CostEstimate, PackedBatch


class ImportanceCost:
    """Self-normalised importance sampling over the held-out pairs: weights exp(log policy - log reference).

    Right only where the reference itself wrote the responses, and only while the policy stays near it: weights of
    whole responses spread exponentially in their length. It has no random draw, so ``seed`` and ``epoch`` are unused.

    Args:
        minimum_effective: Effective sample size (sum w)^2 / sum w^2 below which the estimate is refused.

    Raises:
        ValueError: If ``minimum_effective`` is below 2.
    """

    def __init__(self, minimum_effective: float = 50.0) -> None:
        if not minimum_effective >= 2:
            raise ValueError(f"minimum_effective must be >= 2, got {minimum_effective}")
        self.minimum_effective = minimum_effective

    def __call__(self, module: Aligned, data: HeldOut, *, seed: int, epoch: int) -> CostEstimate:
        """Estimate; see the class.

        Raises:
            ValueError: If anybody but the reference wrote a response, a cost is missing (naming the pair), or the
                effective sample size is too small.
        """
        if set(data.responses_from) != {"reference"}:
            raise ValueError(
                f"importance weights need responses of the reference itself, and the dual split has responses from "
                f"{sorted(data.responses_from)}: the weights would correct for the wrong distribution. Use rollout"
            )
        device = device_of(module)
        rank, world = rank_and_world()
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        with quiet(module, hash64("importance-pass", rank)):
            for turn, batch in enumerate(data.dual_pairs()):
                logratio_N = (
                    self._logratio(module, batch, device)
                    if turn % world == rank
                    else torch.zeros(2 * len(batch.pair_id), dtype=torch.float64)
                )
                parts.append(self._present(batch, logratio_N))
        if not parts:
            raise ValueError("the dual split has no pairs")
        logratio_n, cost, prompt_n = (torch.cat(column) for column in zip(*parts, strict=True))
        logratio_n = merge(logratio_n, device)
        weight_n = (logratio_n - logratio_n.logsumexp(0)).exp()
        effective = float(1 / weight_n.square().sum())
        if not effective >= self.minimum_effective:
            raise ValueError(
                f"effective sample size {effective:.1f} of {len(weight_n)} responses is below "
                f"{self.minimum_effective}: the policy has left these responses behind. Use rollout"
            )
        mean, stderr = weighted_mean(cost, weight_n, prompt_n)
        unsafe_n = (cost > 0).reshape(len(cost), -1).any(-1)
        return CostEstimate(mean, stderr, len(weight_n), (weight_n * unsafe_n).sum(), effective)

    @staticmethod
    def _logratio(module: Aligned, batch: PackedBatch, device: torch.device) -> Tensor:
        sequences = type(batch.sequences)(*(field.to(device) for field in batch.sequences))
        policy_N = module.pair.policy_logp(sequences).cpu().double()
        if batch.reference_logp is None:
            return policy_N - module.pair.reference_logp(sequences).cpu().double()
        return policy_N - _interleave(batch.reference_logp.chosen, batch.reference_logp.rejected).cpu().double()

    @staticmethod
    def _present(batch: PackedBatch, logratio_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-ratio, cost and prompt id of the true responses of a batch."""
        present_N = batch.present.cpu().repeat_interleave(2)
        cost = _interleave(batch.label.cost.chosen, batch.label.cost.rejected).cpu().double()
        wrong_N = present_N & ~cost.isfinite().reshape(len(cost), -1).all(-1)
        if wrong_N.any():
            pair = int(batch.pair_id[int(wrong_N.nonzero()[0]) // 2])
            raise ValueError(f"pair {pair} of the dual split has no finite cost")
        prompt_N = batch.prompt_id.cpu().repeat_interleave(2)
        return logratio_N[present_N], cost[present_N], prompt_N[present_N]


def _interleave(chosen: Tensor, rejected: Tensor) -> Tensor:
    """[N] or [N, C] in the order of a batch's sequences: chosen and rejected in turn."""
    return torch.stack((chosen, rejected), dim=1).flatten(0, 1)
