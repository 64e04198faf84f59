"""Identity Preference Optimization (IPO). Interior-point Policy Optimization is another method: see docs/objectives.md.

Source: Azar et al. 2023, arXiv:2310.12036, eq. 17. It leaves open whether a log-ratio is a sum or a mean over tokens.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lit_safe.objectives.parts import check_positive, linked, per_token
from lit_safe.types import NO_EXTRA, Annotation, Extra, Need, Pair, Scored


@dataclass(frozen=True)
class IPO:
    """IPO: the squared distance of the margin from 1 / (2 beta). Uses the order of each pair and no labels.

    Args:
        beta: Strength of the KL regularisation towards the reference policy, > 0 (tau of the paper).
        average: Use each response's log-ratio per token in place of its sum. TRL does so, and reports that the authors
            confirmed it. The optimum of the paper is that of the sum; ``beta`` has another scale with the mean.

    Raises:
        ValueError: If ``beta`` is not > 0.

    Example:
        >>> import torch
        >>> from lit_safe.types import Annotation, Pair
        >>> unknown = Pair(torch.tensor([torch.nan]), torch.tensor([torch.nan]))
        >>> logratio = Pair(torch.tensor([2.0]), torch.tensor([-3.0]))
        >>> IPO(beta=0.25)(logratio, Annotation(unknown, unknown), torch.tensor(0.0)).loss  # (5 - 2)^2
        tensor([9.])
    """

    reads_multiplier: ClassVar[bool] = False
    beta: float = 0.1
    average: bool = False

    def __post_init__(self) -> None:
        check_positive(beta=self.beta)

    @property
    def needs(self) -> tuple[Need, ...]:
        """Lengths if log-ratios are averaged."""
        return ("length",) if self.average else ()

    def __call__(self, logratio: Pair, label: Annotation, multiplier: Tensor, extra: Extra = NO_EXTRA) -> Scored:
        margin_B = (per_token(logratio, extra["length"]) if self.average else logratio).margin
        loss_B = linked("square", self.beta * margin_B, self.beta)  # eq. 17: (h - 1 / (2 tau))^2
        return Scored(loss_B, torch.ones_like(loss_B))
