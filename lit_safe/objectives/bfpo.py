"""Bi-Factorial Preference Optimization (BFPO): IPO with a target margin that depends on both safety flags.

Source: Zhang et al. 2024, arXiv:2408.15313 (ICLR 2025), and its code, github.com/wx-zhang/bfpo.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lit_safe.objectives.parts import check_positive
from lit_safe.types import Annotation, Need, Pair, Scored


@dataclass(frozen=True)
class BFPO:
    """BFPO on pairs ordered by helpfulness: the squared distance of the margin from a target / beta.

    With the defaults, the target is 1/2 for two safe responses, 1 if only the chosen one is safe, -1 if only the
    rejected one is, and -1/2 for two unsafe ones: the more helpful of two unsafe responses is made less likely.

    The authors also train a fixed share of the model's weights, and add to each step the loss of a batch of general
    pairs that count as safe. Neither is part of this loss: mix such pairs into the data, with costs <= 0.

    Args:
        beta: Strength of the KL regularisation towards the reference policy, > 0 (tau; 0.01 in the authors' recipe).
        safety: B1 > 1: a safe chosen response moves the target by safety / (safety - 1), a safe rejected one by
            -1 / (safety - 1).
        shift: alpha, subtracted from the target.

    Raises:
        ValueError: If ``beta`` is not > 0 or ``safety`` is not > 1.

    Example:
        >>> import torch
        >>> from lit_safe.types import Annotation, Pair
        >>> unknown = Pair(torch.tensor([torch.nan]), torch.tensor([torch.nan]))
        >>> cost = Pair(torch.tensor([1.0]), torch.tensor([-1.0]))  # only the rejected one is safe: target -1
        >>> logratio = Pair(torch.tensor([2.0]), torch.tensor([-3.0]))
        >>> BFPO(beta=0.5)(logratio, Annotation(unknown, cost), torch.tensor(0.0)).loss  # (5 + 1 / 0.5)^2
        tensor([49.])
    """

    needs: ClassVar[tuple[Need, ...]] = ("flags",)
    reads_multiplier: ClassVar[bool] = False
    beta: float = 0.1
    safety: float = 3.0
    shift: float = 0.5

    def __post_init__(self) -> None:
        check_positive(beta=self.beta)
        if not self.safety > 1:
            raise ValueError(f"safety must be > 1, got {self.safety}")

    def __call__(self, logratio: Pair, label: Annotation, multiplier: Tensor) -> Scored:
        safe = Pair(*((~side_B).to(logratio.margin) for side_B in label.unsafe))
        scale = 1 / (self.safety - 1)  # B3 of the code
        target_B = self.safety * scale * safe.chosen - scale * safe.rejected - self.shift
        loss_B = (logratio.margin - target_B / self.beta).square()
        return Scored(loss_B, torch.ones_like(loss_B))
