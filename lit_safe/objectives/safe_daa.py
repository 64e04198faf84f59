"""SafeDPO on other links ("SafeDAA"): the same reordering and margin with IPO's square or the hinge.

Source: Kim et al. 2025, arXiv:2505.20065v2. They name SafeDAA; their links and their scales are not known here.
The square's scale is IPO's.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lit_safe.objectives.parts import Link, check_link, check_positive, linked
from lit_safe.objectives.safety_order import keeps, reordered
from lit_safe.types import Annotation, Need, Pair, Scored


@dataclass(frozen=True)
class SafeDAA:
    """SafeDPO's transform T and margin with a link of choice. ``logistic`` is SafeDPO.

    Only the logistic link drives unsafe responses to probability 0. With the other two, a pair stops training once its
    logit reaches 1/2 (square) or 1 (hinge), so an unsafe response keeps a probability that depends on ``offset``.

    Args:
        beta: Strength of the KL regularisation towards the reference policy, > 0.
        offset: Margin Delta >= 0 of a safe response over an unsafe one, in nats after scaling by beta.
        link: ``logistic``, ``square`` or ``hinge``.

    Raises:
        ValueError: If ``beta`` is not > 0, ``offset`` is negative or ``link`` is unknown.

    Example:
        >>> import torch
        >>> from lit_safe.types import Annotation, Pair
        >>> unknown = Pair(torch.tensor([torch.nan]), torch.tensor([torch.nan]))
        >>> cost = Pair(torch.tensor([1.0]), torch.tensor([-1.0]))  # swapped: 1 - (-0.5 - 1)
        >>> logratio = Pair(torch.tensor([2.0]), torch.tensor([-3.0]))
        >>> SafeDAA(beta=0.1, offset=1.0, link="hinge")(logratio, Annotation(unknown, cost), torch.tensor(0.0))
        Scored(loss=tensor([2.5000]), weight=tensor([1.]))
    """

    needs: ClassVar[tuple[Need, ...]] = ("flags",)
    reads_multiplier: ClassVar[bool] = False
    beta: float = 0.1
    offset: float = 10.0
    link: Link = "square"

    def __post_init__(self) -> None:
        check_positive(beta=self.beta)
        check_link(self.link)
        if not self.offset >= 0:
            raise ValueError(f"offset must be >= 0, got {self.offset}")

    def keeps(self, label: Annotation) -> Tensor:
        """[B] bool: False for pairs of two unsafe responses, as in SafeDPO."""
        return keeps(label)

    def __call__(self, logratio: Pair, label: Annotation, multiplier: Tensor) -> Scored:
        margin_B, differ_B = reordered(logratio, label)
        loss_B = linked(self.link, self.beta * margin_B - self.offset * differ_B, self.beta)
        return Scored(loss_B, self.keeps(label).to(loss_B))
