"""Cross-entropy of single tokens, with a weight for each.

Letters: R scored positions.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class CrossEntropy:
    """``loss = weight * nll``. Without weights it is fine-tuning's own loss, to the bit."""

    def loss(self, nll: Tensor, weight: Tensor) -> Tensor:
        return weight * nll

    def kl_factor(self, weight: Tensor) -> Tensor | None:
        return None
