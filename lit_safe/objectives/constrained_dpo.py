"""Constrained DPO (C-DPO). Mitchell's *conservative* cDPO is another method: ``DPO(label_smoothing=...)``.

Source: Liu, Sun & Zheng 2024, arXiv:2403.02475. Equation numbers are from this paper.
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
    """C-DPO: DPO with preferences given by the Lagrangian reward ``r - multiplier * c``.

    Args:
        beta: Strength of the KL regularisation towards the reference policy, > 0.
        labels: How preferences are computed. ``soft`` weights both orders of a pair by their probability; this is the
            expectation of the sampled loss and has less variance. ``sampled`` draws one order with that probability
            for each value of the multiplier, reproducibly, as in the paper's theory. ``hard`` uses the likelier order
            (a tie weights both orders equally). Sources disagree about which of these the authors ran.
        rectify: Use max(cost, 0) in place of the cost. A safe response then gains nothing by being safer, and cannot
            pay for an unsafe one. This is the rectifier of RePO (arXiv:2410.19933) and CS-RLHF (arXiv:2510.03520),
            which train by reinforcement learning; this loss is not theirs. The limit should bound the same cost
            (``lit_safe.rollouts.rectified.Rectified``).

    Raises:
        ValueError: If ``beta`` is not > 0, ``labels`` is unknown, or ``sampled`` gets a batch without draws.

    Example:
        >>> import torch
        >>> from lit_safe.types import Annotation, Pair
        >>> reward = Pair(torch.tensor([1.0]), torch.tensor([0.0]))
        >>> cost = Pair(torch.tensor([1.0]), torch.tensor([-1.0]))  # chosen is more helpful and unsafe
        >>> logratio = Pair(torch.tensor([0.0]), torch.tensor([0.0]))
        >>> ConstrainedDPO()(logratio, Annotation(reward, cost), torch.tensor(0.5)).loss  # 1 - 0.5 * 2 = 0: a tie
        tensor([0.6931])
    """

    needs: ClassVar[tuple[Need, ...]] = ("reward", "cost")
    reads_multiplier: ClassVar[bool] = True
    beta: float = 0.1
    labels: Labels = "soft"
    rectify: bool = False

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta must be > 0, got {self.beta}")
        if self.labels not in get_args(Labels):
            raise ValueError(f"labels must be one of {get_args(Labels)}, got {self.labels!r}")

    def __call__(self, logratio: Pair, label: Annotation, multiplier: Tensor) -> Scored:
        cost = Pair(*(side.clamp(min=0) for side in label.cost)) if self.rectify else label.cost
        cost_B = multiplier * cost.margin
        if cost_B.ndim == 2:
            cost_B = cost_B.sum(-1)  # one multiplier per constraint
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
