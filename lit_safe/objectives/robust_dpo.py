"""Robust DPO (rDPO): DPO whose expected loss does not change when a share of the orders is wrong.

Source: Chowdhury et al. 2024, arXiv:2403.00409.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lit_safe.objectives.bradley_terry import nll
from lit_safe.objectives.parts import check_positive
from lit_safe.types import Annotation, Need, Pair, Scored


@dataclass(frozen=True)
class RobustDPO:
    """Robust DPO. Uses the order of each pair and no labels.

    The loss is the cross-entropy with the target (1 - flip_rate) / (1 - 2 flip_rate) > 1, so it falls without bound as
    a margin grows. On few pairs it overfits: watch the margins, or use DPO with ``label_smoothing``, which is
    bounded and biased.

    Args:
        beta: Strength of the KL regularisation towards the reference policy, > 0.
        flip_rate: Assumed probability in [0, 0.5) that the order of a pair is wrong.

    Raises:
        ValueError: If ``beta`` or ``flip_rate`` is outside its range.

    Example:
        >>> import torch
        >>> from lit_safe.types import Annotation, Pair
        >>> unknown = Pair(torch.tensor([torch.nan]), torch.tensor([torch.nan]))
        >>> logratio = Pair(torch.tensor([20.0]), torch.tensor([0.0]))  # -1.125 log sigmoid(2) + 0.125 log sigmoid(-2)
        >>> RobustDPO(beta=0.1, flip_rate=0.1)(logratio, Annotation(unknown, unknown), torch.tensor(0.0)).loss
        tensor([-0.1231])
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    reads_multiplier: ClassVar[bool] = False
    beta: float = 0.1
    flip_rate: float = 0.1

    def __post_init__(self) -> None:
        check_positive(beta=self.beta)
        if not 0 <= self.flip_rate < 0.5:
            raise ValueError(f"flip_rate must lie in [0, 0.5), got {self.flip_rate}")

    def __call__(self, logratio: Pair, label: Annotation, multiplier: Tensor) -> Scored:
        target = (1 - self.flip_rate) / (1 - 2 * self.flip_rate)
        loss_B = nll(self.beta * logratio.margin, target)  # Chowdhury et al. eq. 12
        return Scored(loss_B, torch.ones_like(loss_B))
