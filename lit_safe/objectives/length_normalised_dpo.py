"""DPO on log-ratios per token, so that long responses have no larger margins than short ones.

Source: Lambert et al. 2024 (Tulu 3), arXiv:2411.15124, second-hand; TRL's ``loss_type="sigmoid_norm"``.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lit_safe.objectives.bradley_terry import nll
from lit_safe.objectives.parts import check_positive, per_token
from lit_safe.types import NO_EXTRA, Annotation, Extra, Need, Pair, Scored


@dataclass(frozen=True)
class LengthNormalisedDPO:
    """DPO with each log-ratio divided by the response's tokens. Uses the order of each pair and no labels.

    It has a reference and no margin, unlike SimPO.

    Args:
        beta: Factor of a log-ratio per token, > 0. The same strength as DPO's takes about DPO's beta times the usual
            number of tokens.

    Raises:
        ValueError: If ``beta`` is not > 0.

    Example:
        >>> import torch
        >>> from lit_safe.types import Annotation, Extra, Pair
        >>> unknown = Pair(torch.tensor([torch.nan]), torch.tensor([torch.nan]))
        >>> ratio, length = Pair(torch.tensor([8.0]), torch.tensor([6.0])), Pair(torch.tensor([4]), torch.tensor([6]))
        >>> label, extra = Annotation(unknown, unknown), Extra(length=length)
        >>> LengthNormalisedDPO(beta=2.0)(ratio, label, torch.tensor(0.0), extra).loss  # -log sigmoid(2 * (2 - 1))
        tensor([0.1269])
    """

    needs: ClassVar[tuple[Need, ...]] = ("length",)
    reads_multiplier: ClassVar[bool] = False
    beta: float = 5.0

    def __post_init__(self) -> None:
        check_positive(beta=self.beta)

    def __call__(self, logratio: Pair, label: Annotation, multiplier: Tensor, extra: Extra = NO_EXTRA) -> Scored:
        loss_B = nll(self.beta * per_token(logratio, extra["length"]).margin)
        return Scored(loss_B, torch.ones_like(loss_B))
