"""DPO on helpfulness plus a multiple of DPO on safety: the loss of an offline barrier, with the multiplier of LBSGD.

Source: Usmanova et al. 2022, arXiv:2207.10415 (LBSGD, the barrier). Its use with two DPO losses is ours.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lit_safe.objectives.bradley_terry import nll
from lit_safe.types import Annotation, Need, Pair, Scored


@dataclass(frozen=True)
class SafetyPenaltyDPO:
    """L_help + multiplier * L_safe, each a DPO loss with the reference's labels in expectation.

    L_help weights both orders of a pair by their Bradley-Terry probability under the reward, L_safe by that under the
    cost. Both are log 2 at the reference. With the multiplier eta / (limit - L_safe) of the controller ``LogBarrier``
    and the estimator ``SafetyLoss``, its gradient is that of L_help - eta log(limit - L_safe).

    Args:
        beta: Strength of the KL regularisation towards the reference policy, > 0.

    Raises:
        ValueError: If ``beta`` is not > 0.

    Example:
        >>> import torch
        >>> from lit_safe.types import Annotation, Pair
        >>> reward = Pair(torch.tensor([1.0]), torch.tensor([0.0]))
        >>> cost = Pair(torch.tensor([1.0]), torch.tensor([-1.0]))
        >>> logratio = Pair(torch.tensor([0.0]), torch.tensor([0.0]))
        >>> SafetyPenaltyDPO()(logratio, Annotation(reward, cost), torch.tensor(0.5)).loss  # 1.5 log 2
        tensor([1.0397])
    """

    needs: ClassVar[tuple[Need, ...]] = ("reward", "cost")
    reads_multiplier: ClassVar[bool] = True
    beta: float = 0.1

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta must be > 0, got {self.beta}")

    def __call__(self, logratio: Pair, label: Annotation, multiplier: Tensor) -> Scored:
        logit_B = self.beta * logratio.margin
        loss_B = nll(logit_B, label.reward.margin.sigmoid())
        safe = nll(logit_B if label.cost.margin.ndim == 1 else logit_B[:, None], (-label.cost.margin).sigmoid())
        penalty = multiplier * safe
        loss_B = loss_B + (penalty.sum(-1) if penalty.ndim == 2 else penalty)  # one multiplier per constraint
        return Scored(loss_B, torch.ones_like(loss_B))
