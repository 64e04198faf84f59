"""SACPO: the second of two stages, DPO on safety from the policy of the first. With dual steps it is PD-DPO's.

Source: Wachi et al. 2024, arXiv:2404.11049 (SACPO). PD-DPO (arXiv:2510.05703) is known to us from its abstract and from
reviews. That its primal step is this loss is our derivation.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from lit_safe.objectives.bradley_terry import nll
from lit_safe.types import Annotation, Need, Pair, Scored

Labels = Literal["ordered", "soft"]

SMALLEST = 1e-6
"""A smaller multiplier counts as this: the policy then stays at its reference."""


@dataclass(frozen=True)
class SACPO:
    """DPO on the order by safety with ``beta / multiplier`` in place of beta, times the multiplier.

    The reference is the policy of the first stage, pi_r. The optimum is pi_r exp(multiplier * g / beta) / Z for the
    safety g (Theorem 1). If pi_r is the optimum pi_ref exp(r / beta) / Z of DPO with the same beta, this is the optimum
    for the reward r + multiplier * g, as of C-DPO with the cost -g.

    The factor in front, which is ours, keeps the gradient bounded by beta for every multiplier, also 0. For a fixed
    multiplier it does not move the optimum. A multiplier that a dual step moves makes this the primal step of PD-DPO.

    Args:
        beta: Strength of the KL regularisation of both stages, > 0. The paper's second beta is ``beta / multiplier``.
        labels: ``ordered`` takes chosen for the safer response, as in the paper; the data need ``order: safer``.
            ``soft`` (ours) weights both orders by their Bradley-Terry probability under the cost, so that the order in
            the data does not matter.

    Raises:
        ValueError: If ``beta`` is not > 0, ``labels`` is unknown, or there are several constraints.

    Example:
        >>> import torch
        >>> from lit_safe.types import Annotation, Pair
        >>> unknown = Pair(torch.tensor([torch.nan]), torch.tensor([torch.nan]))
        >>> logratio = Pair(torch.tensor([2.0]), torch.tensor([-3.0]))
        >>> SACPO(beta=0.1)(logratio, Annotation(unknown, unknown), torch.tensor(0.5)).loss  # -log sigmoid(1) / 2
        tensor([0.1566])
    """

    reads_multiplier: ClassVar[bool] = True
    beta: float = 0.1
    labels: Labels = "ordered"

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta must be > 0, got {self.beta}")
        if self.labels not in get_args(Labels):
            raise ValueError(f"labels must be one of {get_args(Labels)}, got {self.labels!r}")

    @property
    def needs(self) -> tuple[Need, ...]:
        """Costs if ``labels`` is ``soft``."""
        return ("cost",) if self.labels == "soft" else ()

    def __call__(self, logratio: Pair, label: Annotation, multiplier: Tensor) -> Scored:
        if multiplier.ndim:
            raise ValueError("SACPO has one constraint: use ConstrainedDPO for several, or a stage for each")
        scale = multiplier.clamp(min=SMALLEST)
        # P(chosen is safer) under the Bradley-Terry model of g = -c
        prefer = (-label.cost.margin).sigmoid() if self.labels == "soft" else 1.0
        logit_B = self.beta / scale * logratio.margin  # DPO, Rafailov et al. eq. 7, with beta / lambda
        loss_B = scale * nll(logit_B, prefer)
        return Scored(loss_B, torch.ones_like(loss_B))
