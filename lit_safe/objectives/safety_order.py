"""The transform T of SafeDPO: which pairs are kept, and in which order.

Letters: B pairs. Source: Kim et al. 2025, arXiv:2505.20065v2, eq. 11.
"""

import torch
from torch import Tensor

from lit_safe.types import Annotation, Pair


def keeps(label: Annotation) -> Tensor:
    """[B] bool: False for pairs of two unsafe responses, which the transform T drops (eq. 11)."""
    return ~(label.unsafe.chosen & label.unsafe.rejected)


def reordered(logratio: Pair, label: Annotation) -> tuple[Tensor, Tensor]:
    """[B] margins in nats after the transform T, and [B] 1 where one response is safe and the other unsafe, else 0."""
    unsafe = label.unsafe
    swap_B = unsafe.chosen & ~unsafe.rejected  # the transform T: the safe response is preferred
    margin_B = torch.where(swap_B, -logratio.margin, logratio.margin)
    return margin_B, (unsafe.chosen ^ unsafe.rejected).to(margin_B)  # the second is h~_l - h~_w after T
