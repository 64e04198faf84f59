"""Gradient ascent on the loss of given responses, bounded: the first patch of SafePatching.

Letters: R scored positions.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ClippedAscent:
    """``loss = -weight * min(nll, clip)``: the sign of fine-tuning's loss turned, and no gradient beyond the bound.

    Training makes the responses less likely, token by token, until each token's NLL is ``clip``. Without a bound the
    loss falls forever and destroys the model. SafePatching (Zhao et al. 2024, arXiv:2405.13820) ascends with a clipped
    loss; that the bound is one on the NLL of each token, and its default, are ours.

    Args:
        clip: Largest NLL of a token that still has a gradient, in nats, > 0.

    Raises:
        ValueError: If ``clip`` is not positive.
    """

    clip: float = 5.0

    def __post_init__(self) -> None:
        if not self.clip > 0:
            raise ValueError(f"clip must be > 0 nats, got {self.clip}")

    def loss(self, nll: Tensor, weight: Tensor) -> Tensor:
        return -weight * nll.clamp(max=self.clip)

    def kl_factor(self, weight: Tensor) -> Tensor | None:
        return None
