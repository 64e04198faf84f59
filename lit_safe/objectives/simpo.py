"""SimPO: preferences by the policy's own log-probs per token, with a target margin and no reference.

Source: Meng et al. 2024, arXiv:2405.14734.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lit_safe.objectives.bradley_terry import nll
from lit_safe.objectives.parts import check_positive, per_token
from lit_safe.types import NO_EXTRA, Annotation, Extra, Need, Pair, Scored


@dataclass(frozen=True)
class SimPO:
    """SimPO. Uses the order of each pair and no labels. No reference is loaded.

    Args:
        beta: Factor of the log-prob per token, > 0.
        gamma: Margin >= 0 in nats, after scaling by beta, that the chosen response should have.

    Raises:
        ValueError: If ``beta`` is not > 0 or ``gamma`` is negative.

    Example:
        >>> import torch
        >>> from lit_safe.types import Annotation, Extra, Pair
        >>> unknown = Pair(torch.tensor([torch.nan]), torch.tensor([torch.nan]))
        >>> logp, length = Pair(torch.tensor([-8.0]), torch.tensor([-6.0])), Pair(torch.tensor([8]), torch.tensor([3]))
        >>> label, extra = Annotation(unknown, unknown), Extra(length=length)
        >>> SimPO(beta=2.0, gamma=1.0)(logp, label, torch.tensor(0.0), extra).loss  # -log sigmoid(2 * (-1 + 2) - 1)
        tensor([0.3133])
    """

    needs: ClassVar[tuple[Need, ...]] = ("length",)
    reads_multiplier: ClassVar[bool] = False
    reference_free: ClassVar[bool] = True
    beta: float = 2.5
    gamma: float = 1.375

    def __post_init__(self) -> None:
        check_positive(beta=self.beta)
        if not self.gamma >= 0:
            raise ValueError(f"gamma must be >= 0, got {self.gamma}")

    def __call__(self, logratio: Pair, label: Annotation, multiplier: Tensor, extra: Extra = NO_EXTRA) -> Scored:
        logp = logratio  # without a reference these are log-probs
        loss_B = nll(self.beta * per_token(logp, extra["length"]).margin - self.gamma)  # Meng et al. eq. 6
        return Scored(loss_B, torch.ones_like(loss_B))
