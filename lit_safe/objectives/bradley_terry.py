"""The likelihood that the pairwise objectives share."""

import torch.nn.functional as F
from torch import Tensor


def nll(logit_B: Tensor, prefer_B: Tensor | float = 1.0) -> Tensor:
    """[B] cross-entropy in nats between ``prefer_B``, P(chosen is preferred), and sigmoid(``logit_B``).

    ``prefer_B`` is never clamped: robust DPO's unbiased target lies above 1 (Chowdhury et al. 2024, arXiv:2403.00409,
    eq. 12). Written so that the saturated side is never multiplied by an infinity:
    -p log s(z) - (1 - p) log s(-z) = -log s(z) + (1 - p) z.
    """
    return (1 - prefer_B) * logit_B - F.logsigmoid(logit_B)
