"""SafeDPO: DPO on re-ordered pairs with an offset between a safe and an unsafe response.

Kim et al. 2025, arXiv:2505.20065, whose equation numbers are used.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lit_safe.objectives.bradley_terry import nll
from lit_safe.types import Annotation, Need, Pair, Scored


@dataclass(frozen=True)
class SafeDPO:
    """Keeps a pair whose more helpful response is safe, swaps it if only the other is, drops it if both are unsafe.

    Args:
        beta: Strength of the pull towards the reference policy, > 0.
        offset: Margin Delta >= 0, in nats of the scaled log-ratio (outside beta), that a safe response must have over
            an unsafe one. Pairs of two safe responses do not feel it.

    Raises:
        ValueError: If ``beta`` is not > 0 or ``offset`` is negative.
    """

    needs: ClassVar[tuple[Need, ...]] = ("flags",)
    beta: float = 0.1
    offset: float = 10.0

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta must be > 0, got {self.beta}")
        if not self.offset >= 0:
            raise ValueError(f"offset must be >= 0, got {self.offset}")

    def __call__(self, logratio: Pair, label: Annotation, multiplier: Tensor) -> Scored:
        unsafe = label.unsafe
        swap_B = unsafe.chosen & ~unsafe.rejected  # the transform T: the safe response wins
        margin_B = torch.where(swap_B, -logratio.margin, logratio.margin)
        differ_B = (unsafe.chosen ^ unsafe.rejected).to(margin_B)  # h~_l - h~_w after T
        loss_B = nll(self.beta * margin_B - self.offset * differ_B)  # eq. 12
        return Scored(loss_B, (~(unsafe.chosen & unsafe.rejected)).to(loss_B))
