"""Multi-Objective DPO (MODPO): preferences of one objective, corrected by the known score of another one.

Source: Zhou et al. 2023, arXiv:2310.03708, and its code, github.com/ZHZisZZ/modpo.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from lit_safe.objectives.parts import Link, check_link, check_positive, linked
from lit_safe.types import Annotation, Need, Pair, Scored

Score = Literal["cost", "reward"]


@dataclass(frozen=True)
class MODPO:
    """MODPO: trains for weight * (what the order prefers) + (1 - weight) * score.

    The authors' score is the implicit reward of a DPO model of the other objective. Write such scores into a column of
    the data. With ``score="cost"`` and pairs ordered by helpfulness, the optimum is that of C-DPO at the multiplier
    (1 - weight) / weight with beta / weight in place of beta.

    Args:
        beta: Strength of the KL regularisation towards the reference policy, > 0.
        weight: Weight w0 in (0, 1] of the order. Small weights make a large factor beta / weight.
        score: ``cost``: the score is minus the cost (the sum of several). ``reward``: it is the reward, for pairs that
            are ordered by safety.
        link: ``logistic`` or ``hinge``, as in the authors' code; ``square`` is ours.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> import torch
        >>> from lit_safe.types import Annotation, Pair
        >>> unknown = Pair(torch.tensor([torch.nan]), torch.tensor([torch.nan]))
        >>> cost = Pair(torch.tensor([1.0]), torch.tensor([-1.0]))
        >>> logratio = Pair(torch.tensor([2.0]), torch.tensor([-3.0]))
        >>> label = Annotation(unknown, cost)
        >>> MODPO(beta=0.1, weight=0.5)(logratio, label, torch.tensor(0.0)).loss  # -log sigmoid(0.2 * 5 + 2)
        tensor([0.0486])
    """

    reads_multiplier: ClassVar[bool] = False
    beta: float = 0.1
    weight: float = 0.5
    score: Score = "cost"
    link: Link = "logistic"

    def __post_init__(self) -> None:
        check_positive(beta=self.beta)
        check_link(self.link)
        if not 0 < self.weight <= 1:
            raise ValueError(f"weight must lie in (0, 1], got {self.weight}")
        if self.score not in get_args(Score):
            raise ValueError(f"score must be one of {get_args(Score)}, got {self.score!r}")

    @property
    def needs(self) -> tuple[Need, ...]:
        """The label that is the score."""
        return (self.score,)

    def __call__(self, logratio: Pair, label: Annotation, multiplier: Tensor) -> Scored:
        gain_B = label.reward.margin if self.score == "reward" else -label.cost.margin
        if gain_B.ndim == 2:
            gain_B = gain_B.sum(-1)
        beta = self.beta / self.weight
        logit_B = beta * logratio.margin - (1 - self.weight) / self.weight * gain_B  # R(chosen) - R(rejected)
        loss_B = linked(self.link, logit_B, beta)
        return Scored(loss_B, torch.ones_like(loss_B))
