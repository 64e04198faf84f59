"""DPO with SafeDPO's offset and without its transform T: the ablation that asks which of the two matters.

Source: Kim et al. 2025, arXiv:2505.20065v2. They add the offset to DPO-HELPFUL, DPO-HARMLESS and DPO-SAFEBETTER, in an
appendix that nobody here has read. That the sign of a pair's offset follows its order is our reading.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lit_safe.objectives.bradley_terry import nll
from lit_safe.objectives.parts import check_positive
from lit_safe.types import Annotation, Need, Pair, Scored


@dataclass(frozen=True)
class SafetyOffsetDPO:
    """DPO whose logit is ``beta * margin - (unsafe rejected - unsafe chosen) * offset``, in the order of the data.

    No pair is swapped or left out. A safe chosen response must lead an unsafe one by the offset. An unsafe chosen
    response has the offset in its favour, so its pair trains less.

    Args:
        beta: Strength of the KL regularisation towards the reference policy, > 0.
        offset: Margin Delta >= 0, in nats, added after scaling by beta. With 0 this is DPO.

    Raises:
        ValueError: If ``beta`` is not > 0 or ``offset`` is negative.

    Example:
        >>> import torch
        >>> from lit_safe.types import Annotation, Pair
        >>> unknown = Pair(torch.tensor([torch.nan]), torch.tensor([torch.nan]))
        >>> cost = Pair(torch.tensor([-1.0]), torch.tensor([1.0]))  # -log sigmoid(0.5 - 1)
        >>> logratio = Pair(torch.tensor([2.0]), torch.tensor([-3.0]))
        >>> SafetyOffsetDPO(beta=0.1, offset=1.0)(logratio, Annotation(unknown, cost), torch.tensor(0.0)).loss
        tensor([0.9741])
    """

    needs: ClassVar[tuple[Need, ...]] = ("flags",)
    reads_multiplier: ClassVar[bool] = False
    beta: float = 0.1
    offset: float = 10.0

    def __post_init__(self) -> None:
        check_positive(beta=self.beta)
        if not self.offset >= 0:
            raise ValueError(f"offset must be >= 0, got {self.offset}")

    def __call__(self, logratio: Pair, label: Annotation, multiplier: Tensor) -> Scored:
        margin_B, unsafe = logratio.margin, label.unsafe
        gap_B = unsafe.rejected.to(margin_B) - unsafe.chosen.to(margin_B)  # h_l - h_w, in {-1, 0, 1}
        loss_B = nll(self.beta * margin_B - self.offset * gap_B)  # Kim et al. eq. 12 without T
        return Scored(loss_B, torch.ones_like(loss_B))
