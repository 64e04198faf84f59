"""SafeDPO: DPO on re-ordered pairs with an offset between a safe and an unsafe response.

Kim et al. 2025, arXiv:2505.20065v2 of 4 March 2026, whose equation numbers are used (version 1 has others).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from lit_safe.objectives.bradley_terry import nll
from lit_safe.types import Annotation, Need, Pair, Scored

Labels = Literal["ordered", "soft"]


@dataclass(frozen=True)
class SafeDPO:
    """Keeps a pair whose more helpful response is safe, swaps it if only the other is, drops it if both are unsafe.

    Args:
        beta: Strength of the pull towards the reference policy, > 0.
        offset: Margin Delta >= 0, in nats of the scaled log-ratio (outside beta), that a safe response must have over
            an unsafe one. Pairs of two safe responses do not feel it.
        labels: ``ordered`` takes the more helpful response as the data order it, as the paper does. ``soft``, which is
            ours, weights both orders of two safe responses by their Bradley-Terry probability, where rewards are known:
            the same loss in expectation over the drawn order, so the same optimum, with less variance.

    Raises:
        ValueError: If ``beta`` is not > 0, ``offset`` is negative or ``labels`` is unknown.
    """

    reads_multiplier: ClassVar[bool] = False
    beta: float = 0.1
    offset: float = 10.0
    labels: Labels = "ordered"

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta must be > 0, got {self.beta}")
        if not self.offset >= 0:
            raise ValueError(f"offset must be >= 0, got {self.offset}")
        if self.labels not in get_args(Labels):
            raise ValueError(f"labels must be one of {get_args(Labels)}, got {self.labels!r}")

    @property
    def needs(self) -> tuple[Need, ...]:
        """Safe flags, and rewards where labels are soft."""
        return ("flags",) if self.labels == "ordered" else ("reward", "flags")

    def keeps(self, label: Annotation) -> Tensor:
        """[B] bool: all but the pairs of two unsafe responses, which the paper's T leaves out of the data (eq. 11)."""
        return ~(label.unsafe.chosen & label.unsafe.rejected)

    def __call__(self, logratio: Pair, label: Annotation, multiplier: Tensor) -> Scored:
        unsafe = label.unsafe
        swap_B = unsafe.chosen & ~unsafe.rejected  # the transform T: the safe response wins
        margin_B = torch.where(swap_B, -logratio.margin, logratio.margin)
        differ_B = (unsafe.chosen ^ unsafe.rejected).to(margin_B)  # h~_l - h~_w after T
        logit_B = self.beta * margin_B - self.offset * differ_B
        if self.labels == "ordered":
            loss_B = nll(logit_B)  # eq. 12
        else:
            both_safe_B = ~(unsafe.chosen | unsafe.rejected)
            certain_B = torch.ones_like(logit_B)
            # the expectation of eq. 12 over the order, P(chosen is more helpful) = sigma(r_chosen - r_rejected)
            loss_B = nll(logit_B, torch.where(both_safe_B, label.reward.margin.sigmoid().to(logit_B), certain_B))
        return Scored(loss_B, self.keeps(label).to(loss_B))
