"""Estimates E[cost] by importance weighting labelled responses of the reference: no sampling, limited range.

Letters: n responses of the split, C constraints.
"""

from lit_safe.constraint.costs import HeldOut
from lit_safe.constraint.costs.labelled_rows import labelled_rows
from lit_safe.constraint.costs.mean import mean_cost, unsafe_interval
from lit_safe.protocols.pair import HasPair
from lit_safe.types import CostEstimate


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
        logratio_n, cost, prompt_n = labelled_rows(module, data, "importance-pass")
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
