"""Contrastive Preference Optimization (CPO). Two other methods have this name: see docs/objectives.md.

Source: Xu et al. 2024, arXiv:2401.08417.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lit_safe.objectives.bradley_terry import nll
from lit_safe.objectives.parts import check_positive, per_token
from lit_safe.types import NO_EXTRA, Annotation, Extra, Need, Pair, Scored


@dataclass(frozen=True)
class CPO:
    """CPO: DPO with a uniform reference, and the likelihood of the chosen response. No reference is loaded.

    Args:
        beta: Factor of log-probs, > 0.
        nll_weight: Weight >= 0 of the chosen response's negative log-likelihood.
        average_nll: Divide this likelihood by the response's tokens, as TRL does (there over a whole micro-batch). The
            paper writes the sum.

    Raises:
        ValueError: If ``beta`` is not > 0 or ``nll_weight`` is negative.

    Example:
        >>> import torch
        >>> from lit_safe.types import Annotation, Extra, Pair
        >>> unknown = Pair(torch.tensor([torch.nan]), torch.tensor([torch.nan]))
        >>> logp, length = Pair(torch.tensor([-8.0]), torch.tensor([-6.0])), Pair(torch.tensor([8]), torch.tensor([3]))
        >>> label, extra = Annotation(unknown, unknown), Extra(length=length)
        >>> CPO(beta=0.5)(logp, label, torch.tensor(0.0), extra).loss  # -log sigmoid(0.5 * -2) + 8 / 8
        tensor([2.3133])
    """

    reads_multiplier: ClassVar[bool] = False
    reference_free: ClassVar[bool] = True
    beta: float = 0.1
    nll_weight: float = 1.0
    average_nll: bool = True

    def __post_init__(self) -> None:
        check_positive(beta=self.beta)
        if not self.nll_weight >= 0:
            raise ValueError(f"nll_weight must be >= 0, got {self.nll_weight}")

    @property
    def needs(self) -> tuple[Need, ...]:
        """Lengths if the likelihood is averaged."""
        return ("length",) if self.average_nll else ()

    def __call__(self, logratio: Pair, label: Annotation, multiplier: Tensor, extra: Extra = NO_EXTRA) -> Scored:
        logp = logratio  # without a reference these are log-probs
        chosen_B = (per_token(logp, extra["length"]) if self.average_nll else logp).chosen
        loss_B = nll(self.beta * logp.margin) - self.nll_weight * chosen_B  # L_prefer + L_NLL
        return Scored(loss_B, torch.ones_like(loss_B))
