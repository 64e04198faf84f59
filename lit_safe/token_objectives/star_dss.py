"""STAR-DSS: imitate what a guardrail calls safe, and stay with the reference where it does not.

Letters: R scored positions.
"""

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class StarDss:
    """``loss = V * nll + (1 - V) * kl_weight * KL(policy || reference)`` at each token, V its weight in [0, 1].

    Peng et al. 2025 (arXiv:2505.17196): V is a guardrail's probability that the response is safe up to the end of the
    token's chunk (``lit_safe.training.chunk_scores``). With one V for a whole response it is their static shaping. We
    know the loss second-hand, from two descriptions of the paper that agree. Neither gives ``kl_weight`` or the
    normalisation: the default of 1 and the mean over the step's scored tokens are ours.

    Args:
        kl_weight: Their lambda_KL, >= 0 and finite.

    Raises:
        ValueError: If ``kl_weight`` is negative or not finite.
    """

    kl_weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.kl_weight < math.inf:
            raise ValueError(f"kl_weight must be >= 0 and finite, got {self.kl_weight}")

    def loss(self, nll: Tensor, weight: Tensor) -> Tensor:
        return weight * nll

    def kl_factor(self, weight: Tensor) -> Tensor | None:
        return self.kl_weight * (1 - weight)
