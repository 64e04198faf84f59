"""Estimates E[cost] by importance weighting labelled responses of the reference: no sampling, limited range.

Letters: B pairs, N = 2B responses of a batch, n responses of the split, C constraints.
"""

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from lit_safe.constraint.costs import HeldOut
from lit_safe.constraint.costs.mean import mean_cost, unsafe_interval
from lit_safe.execution.quiet import quiet
from lit_safe.execution.ranks import gather, rank_and_world
from lit_safe.hashing import hash64
from lit_safe.protocols.pair import HasPair
from lit_safe.types import CostEstimate, PackedBatch


class ImportanceCost:
    """Estimates E[cost] from the held-out pairs by self-normalised importance sampling.

    The weights are exp(log policy - log reference). The estimate is valid only if the reference wrote the responses and
    the policy is still close to it: the spread of the weights grows exponentially with response length. Nothing is
    sampled, so ``seed`` and ``epoch`` are unused.

    Args:
        minimum_effective: Smallest accepted effective sample size (sum w)^2 / sum w^2. Estimates were measurably biased
            at about 50, and within their error from 200 on (docs/estimators.md).

    Raises:
        ValueError: If ``minimum_effective`` is below 2.
    """

    def __init__(self, minimum_effective: float = 200.0) -> None:
        if not minimum_effective >= 2:
            raise ValueError(f"minimum_effective must be >= 2, got {minimum_effective}")
        self.minimum_effective = minimum_effective

    def __call__(self, module: HasPair, data: HeldOut, *, seed: int, epoch: int) -> CostEstimate:
        """Estimate E[cost]; see the class.

        Raises:
            ValueError: If a response was not written by the reference, a cost is missing (the message names the pair),
                or the effective sample size is too small.
        """
        if set(data.responses_from) != {"reference"}:
            raise ValueError(
                f"importance weights need responses of the reference itself, but the dual split has responses from "
                f"{sorted(data.responses_from)}: the weights would correct for the wrong distribution. Use rollout"
            )
        parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        with quiet(module, hash64("importance-pass", rank_and_world()[0])) as device:
            for batch in data.dual_pairs():
                parts.append(self._rows(module, batch, device))
            if not parts:
                raise ValueError("the dual split has no pairs: add data")
            columns = [gather(torch.cat(part), device) for part in zip(*parts, strict=True)]
        logratio_n, cost, prompt_n, present_n = columns
        present_n = present_n.bool()  # gathered as numbers
        logratio_n, cost, prompt_n = logratio_n[present_n], cost[present_n], prompt_n[present_n]
        weight_n = (logratio_n - logratio_n.logsumexp(0)).exp()
        effective = float(1 / weight_n.square().sum())
        if not effective >= self.minimum_effective:
            raise ValueError(
                f"effective sample size {effective:.1f} of {len(weight_n)} responses is below "
                f"{self.minimum_effective}: the policy has moved too far from the reference. Use rollout"
            )
        mean, stderr, bounds = mean_cost(cost, weight_n, prompt_n)
        unsafe_n = (cost > 0).reshape(len(cost), -1).any(-1)
        return CostEstimate(mean, stderr, len(weight_n), (weight_n * unsafe_n).sum(), effective,
                            unsafe_interval(unsafe_n, weight_n, prompt_n),
                            clusters=len(prompt_n.unique()), bounds=bounds)  # fmt: skip

    @staticmethod
    def _rows(module: HasPair, batch: PackedBatch, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Log-ratio [N] in nats, cost [N] or [N, C], prompt id [N] and presence [N] (0 or 1) of a batch's responses."""
        sequences = move_data_to_device(batch.sequences, device)
        policy_N = module.pair.policy_logp(sequences)
        reference = batch.reference_logp
        reference_N = module.pair.reference_logp(sequences) if reference is None else _interleave(*reference)
        present_N = batch.present.cpu().repeat_interleave(2)
        cost = _interleave(*batch.label.cost).cpu().double()
        unknown_N = present_N & ~cost.isfinite().reshape(len(cost), -1).all(-1)
        if unknown_N.any():
            pair = int(batch.pair_id[int(unknown_N.nonzero()[0]) // 2])
            raise ValueError(f"pair {pair} of the dual split has a response without a finite cost")
        logratio_N = policy_N.cpu().double() - reference_N.cpu().double()
        return logratio_N, cost, batch.prompt_id.cpu().repeat_interleave(2), present_N.long()


def _interleave(chosen: Tensor, rejected: Tensor) -> Tensor:
    """[N] or [N, C], in the order of a batch's sequences: chosen and rejected alternate."""
    return torch.stack((chosen, rejected), dim=1).flatten(0, 1)
