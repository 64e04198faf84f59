"""Direct Preference Optimization, and its label-smoothed form (Mitchell's "conservative DPO", cDPO)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lit_safe.objectives.bradley_terry import nll
from lit_safe.types import Annotation, Need, Pair, Scored


@dataclass(frozen=True)
class DPO:
    """DPO (Rafailov et al. 2023, arXiv:2305.18290, eq. 7). Uses the order of each pair and no labels.

    Args:
        beta: Strength of the KL regularisation towards the reference policy, > 0.
        label_smoothing: Assumed probability in [0, 0.5) that the order of a pair is wrong (Mitchell 2023, eq. 3).

    Raises:
        ValueError: If ``beta`` or ``label_smoothing`` is outside its range.

    Example:
        >>> import torch
        >>> from lit_safe.types import Annotation, Pair
        >>> unknown = Pair(torch.tensor([torch.nan]), torch.tensor([torch.nan]))
        >>> logratio = Pair(torch.tensor([2.0]), torch.tensor([-3.0]))
        >>> DPO(beta=0.1)(logratio, Annotation(unknown, unknown), torch.tensor(0.0)).loss  # -log sigmoid(0.1 * 5)
        tensor([0.4741])
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    reads_multiplier: ClassVar[bool] = False
    beta: float = 0.1
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta must be > 0, got {self.beta}")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing must lie in [0, 0.5), got {self.label_smoothing}")

    def __call__(self, logratio: Pair, label: Annotation, multiplier: Tensor) -> Scored:
        loss_B = nll(self.beta * logratio.margin, 1 - self.label_smoothing)  # Rafailov et al. eq. 7; Mitchell eq. 3
        return Scored(loss_B, torch.ones_like(loss_B))
