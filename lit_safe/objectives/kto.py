"""Kahneman-Tversky Optimization (KTO) on both responses of each pair.

Source: Ethayarajh et al. 2024, arXiv:2402.01306, and TRL's trainer. KTO is made for single responses with a label.
Taking both responses of a pair as two such rows, and the labels from the order, is ours.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from lit_safe.objectives.parts import check_positive
from lit_safe.types import NO_EXTRA, Annotation, Extra, Need, Pair, Scored

Desirable = Literal["chosen", "safe"]


@dataclass(frozen=True)
class KTO:
    """KTO: moves the log-ratio of a desirable response above a reference point, that of an undesirable one below it.

    The reference point is KTO's estimate of KL(policy || reference): the mean log-ratio of the step's responses as
    answers to other prompts, at least 0, without gradient. It takes a further forward pass of both models. It is taken
    over the whole step (TRL: over a rank's micro-batch), so it does not depend on the micro-batch size.

    Args:
        beta: Factor of log-ratios, > 0.
        desirable: ``chosen``: the chosen response of each pair is desirable, the rejected one is not. ``safe``: every
            safe response is desirable and every unsafe one is not.
        desirable_weight: Weight > 0 of a desirable response.
        undesirable_weight: Weight > 0 of an undesirable response. With ``safe``, balance the two by their numbers.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> import torch
        >>> from lit_safe.types import Annotation, Extra, Pair
        >>> unknown = Pair(torch.tensor([torch.nan]), torch.tensor([torch.nan]))
        >>> logratio = Pair(torch.tensor([2.0]), torch.tensor([0.0]))
        >>> extra = Extra(mismatched_logratio=torch.tensor(1.0))  # both are 1 nat on the right side: sigmoid(-0.5)
        >>> KTO(beta=0.5)(logratio, Annotation(unknown, unknown), torch.tensor(0.0), extra).loss
        tensor([0.3775])
    """

    reads_multiplier: ClassVar[bool] = False
    beta: float = 0.1
    desirable: Desirable = "chosen"
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.desirable not in get_args(Desirable):
            raise ValueError(f"desirable must be one of {get_args(Desirable)}, got {self.desirable!r}")
        weights = {"desirable_weight": self.desirable_weight, "undesirable_weight": self.undesirable_weight}
        check_positive(beta=self.beta, **weights)

    @property
    def needs(self) -> tuple[Need, ...]:
        """The reference point, and safety flags if they say what is desirable."""
        return ("mismatched_logratio",) if self.desirable == "chosen" else ("flags", "mismatched_logratio")

    def __call__(self, logratio: Pair, label: Annotation, multiplier: Tensor, extra: Extra = NO_EXTRA) -> Scored:
        point = extra["mismatched_logratio"].clamp(min=0)
        by_order = Pair(torch.ones_like(logratio.chosen).bool(), torch.zeros_like(logratio.rejected).bool())
        bad = Pair(*(~side for side in by_order)) if self.desirable == "chosen" else label.unsafe
        sides = []
        for ratio_B, bad_B in zip(logratio, bad, strict=True):
            gain_B = self.beta * torch.where(bad_B, point - ratio_B, ratio_B - point)
            weight_B = torch.where(bad_B, self.undesirable_weight, self.desirable_weight)
            sides.append(weight_B * (-gain_B).sigmoid())  # lambda_y - v(x, y)
        loss_B = (sides[0] + sides[1]) / 2  # the mean over rows
        return Scored(loss_B, torch.ones_like(loss_B))
