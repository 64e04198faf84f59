"""SafeDPO: DPO on pairs reordered by safety, with a margin between safe and unsafe responses.

Source: Kim et al. 2025, arXiv:2505.20065v2 of 4 March 2026. Equation numbers are from version 2; version 1 differs.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from lit_safe.objectives.bradley_terry import nll
from lit_safe.objectives.safety_order import keeps, reordered
from lit_safe.types import Annotation, Need, Pair, Scored

Labels = Literal["ordered", "soft"]


@dataclass(frozen=True)
class SafeDPO:
    """SafeDPO: DPO that prefers the safe response of each pair, by a margin.

    A pair is kept if its more helpful response is safe, swapped if only the other one is, dropped if both are unsafe.

    Args:
        beta: Strength of the KL regularisation towards the reference policy, > 0.
        offset: Margin Delta >= 0 of a safe response over an unsafe one, in nats, added to the log-ratio margin after
            scaling by beta. It does not apply to pairs of two safe responses.
        labels: How two safe responses are ordered. ``ordered`` uses the order in the data, as in the paper. ``soft``
            (ours, needs rewards) weights both orders by their Bradley-Terry probability. This is the expectation of
            the ``ordered`` loss over the order, so it has the same optimum and less variance.

    Raises:
        ValueError: If ``beta`` is not > 0, ``offset`` is negative or ``labels`` is unknown.

    Example:
        >>> import torch
        >>> from lit_safe.types import Annotation, Pair
        >>> unknown = Pair(torch.tensor([torch.nan]), torch.tensor([torch.nan]))
        >>> cost = Pair(torch.tensor([1.0]), torch.tensor([-1.0]))  # swapped: -log sigmoid(-0.5 - 1)
        >>> logratio = Pair(torch.tensor([2.0]), torch.tensor([-3.0]))
        >>> SafeDPO(beta=0.1, offset=1.0)(logratio, Annotation(unknown, cost), torch.tensor(0.0))
        Scored(loss=tensor([1.7014]), weight=tensor([1.]))
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
        """Safety flags; rewards too if ``labels`` is ``soft``."""
        return ("flags",) if self.labels == "ordered" else ("reward", "flags")

    def keeps(self, label: Annotation) -> Tensor:
        """[B] bool: False for pairs of two unsafe responses. The paper's transform T drops these pairs (eq. 11)."""
        return keeps(label)

    def __call__(self, logratio: Pair, label: Annotation, multiplier: Tensor) -> Scored:
        margin_B, differ_B = reordered(logratio, label)
        logit_B = self.beta * margin_B - self.offset * differ_B
        if self.labels == "ordered":
            loss_B = nll(logit_B)  # eq. 12
        else:
            both_safe_B = ~(label.unsafe.chosen | label.unsafe.rejected)
            certain_B = torch.ones_like(logit_B)
            # expectation of eq. 12 over the order, with P(chosen is more helpful) = sigma(r_chosen - r_rejected)
            loss_B = nll(logit_B, torch.where(both_safe_B, label.reward.margin.sigmoid().to(logit_B), certain_B))
        return Scored(loss_B, self.keeps(label).to(loss_B))
