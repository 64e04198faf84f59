"""The hinge loss on log-ratios: SLiC-HF's loss (Zhao et al. 2023, arXiv:2305.10425) with a reference, as in RSO.

Source: Liu et al. 2023 (RSO), arXiv:2309.06657. Cited second-hand, from TRL's ``loss_type="hinge"``.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lit_safe.objectives.parts import check_positive, linked
from lit_safe.types import Annotation, Need, Pair, Scored


@dataclass(frozen=True)
class Hinge:
    """max(0, 1 - beta * margin). Uses the order of each pair and no labels.

    A pair stops training once its margin reaches 1 / beta. How often an order occurs does not matter at the optimum,
    only which one is more frequent.

    Args:
        beta: Inverse of the margin in nats at which a pair stops training, > 0.

    Raises:
        ValueError: If ``beta`` is not > 0.

    Example:
        >>> import torch
        >>> from lit_safe.types import Annotation, Pair
        >>> unknown = Pair(torch.tensor([torch.nan]), torch.tensor([torch.nan]))
        >>> logratio = Pair(torch.tensor([2.0]), torch.tensor([-3.0]))
        >>> Hinge(beta=0.1)(logratio, Annotation(unknown, unknown), torch.tensor(0.0)).loss  # 1 - 0.1 * 5
        tensor([0.5000])
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    reads_multiplier: ClassVar[bool] = False
    beta: float = 0.1

    def __post_init__(self) -> None:
        check_positive(beta=self.beta)

    def __call__(self, logratio: Pair, label: Annotation, multiplier: Tensor) -> Scored:
        loss_B = linked("hinge", self.beta * logratio.margin, self.beta)
        return Scored(loss_B, torch.ones_like(loss_B))
