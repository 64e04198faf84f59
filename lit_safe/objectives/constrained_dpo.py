"""Constrained DPO, C-DPO (not Mitchell's *conservative* cDPO: that is ``DPO(label_smoothing=...)``).

Liu, Sun & Zheng 2024, arXiv:2403.02475, whose equation numbers are used.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from lit_safe.objectives.bradley_terry import nll
from lit_safe.types import Annotation, Need, Pair, Scored

Labels = Literal["soft", "sampled", "hard"]


@dataclass(frozen=True)
class ConstrainedDPO:
    """DPO on the preferences that the Lagrangian reward ``r - multiplier * c`` would have drawn.

    Args:
        beta: Strength of the pull towards the reference policy, > 0.
        labels: ``soft`` weights both orders by their probability (the sampled loss in expectation, with less
            variance); ``sampled`` draws one order from it for each value of the multiplier, repeatably, as the paper's
            theory has it; ``hard`` takes the likelier order as certain (an exact tie weighs both alike). Sources
            disagree which the authors ran.

    Raises:
        ValueError: If ``beta`` is not > 0, ``labels`` is unknown, or ``sampled`` meets a batch without draws.
    """

    needs: ClassVar[tuple[Need, ...]] = ("reward", "cost")
    reads_multiplier: ClassVar[bool] = True
    beta: float = 0.1
    labels: Labels = "soft"

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta must be > 0, got {self.beta}")
        if self.labels not in get_args(Labels):
            raise ValueError(f"labels must be one of {get_args(Labels)}, got {self.labels!r}")

    def __call__(self, logratio: Pair, label: Annotation, multiplier: Tensor) -> Scored:
        cost_B = multiplier * label.cost.margin
        if cost_B.ndim == 2:
            cost_B = cost_B.sum(-1)  # one multiplier a constraint
        margin_B = label.reward.margin - cost_B  # eq. 11: r_lambda(chosen) - r_lambda(rejected)
        loss_B = nll(self.beta * logratio.margin, self._prefer(margin_B, label.draw))  # eq. 13
        return Scored(loss_B, torch.ones_like(loss_B))

    def _prefer(self, margin_B: Tensor, draw_B: Tensor | None) -> Tensor:
        prefer_B = margin_B.sigmoid()  # eq. 12
        if self.labels == "soft":
            return prefer_B
        if self.labels == "hard":
            return (margin_B.sign() + 1) / 2
        if draw_B is None:
            raise ValueError('labels="sampled" needs Annotation.draw: a number in [0, 1) for each pair')
        return (draw_B < prefer_B).to(prefer_B)
