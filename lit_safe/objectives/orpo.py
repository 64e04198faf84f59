"""ORPO: fine-tuning on the chosen response with a penalty on the odds of the rejected one, without a reference.

Source: Hong et al. 2024, arXiv:2403.07691, second-hand.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lit_safe.objectives.bradley_terry import nll
from lit_safe.objectives.parts import check_positive, per_token
from lit_safe.types import NO_EXTRA, Annotation, Extra, Need, Pair, Scored

CERTAIN = -1e-6  # nats per token: a response of probability 1 has infinite odds


@dataclass(frozen=True)
class ORPO:
    """ORPO: the chosen response's negative log-likelihood per token, and ``beta`` times the log of the odds ratio.

    The odds of a response are p / (1 - p), where p is its geometric mean probability per token.

    Args:
        beta: Weight of the odds-ratio term, > 0 (lambda in the paper, beta in TRL). It is no temperature.

    Raises:
        ValueError: If ``beta`` is not > 0.

    Example:
        >>> import torch
        >>> from lit_safe.types import Annotation, Extra, Pair
        >>> unknown = Pair(torch.tensor([torch.nan]), torch.tensor([torch.nan]))
        >>> logp, length = Pair(torch.tensor([-3.0]), torch.tensor([-4.0])), Pair(torch.tensor([3]), torch.tensor([2]))
        >>> label, extra = Annotation(unknown, unknown), Extra(length=length)
        >>> ORPO(beta=1.0)(logp, label, torch.tensor(0.0), extra).loss  # 1 + log(1 + odds(e^-2) / odds(e^-1))
        tensor([1.2382])
    """

    needs: ClassVar[tuple[Need, ...]] = ("length",)
    reads_multiplier: ClassVar[bool] = False
    reference_free: ClassVar[bool] = True
    beta: float = 0.1

    def __post_init__(self) -> None:
        check_positive(beta=self.beta)

    def __call__(self, logratio: Pair, label: Annotation, multiplier: Tensor, extra: Extra = NO_EXTRA) -> Scored:
        mean = per_token(logratio, extra["length"])  # without a reference, of log-probs
        log_odds = Pair(*(side_B - (-side_B.clamp(max=CERTAIN).expm1()).log() for side_B in mean))
        loss_B = -mean.chosen + self.beta * nll(log_odds.margin)  # Hong et al. eq. 6 and 7
        return Scored(loss_B, torch.ones_like(loss_B))
