"""The Bradley-Terry negative log-likelihood, used by all pairwise objectives."""

import torch.nn.functional as F
from torch import Tensor


def nll(logit_B: Tensor, prefer_B: Tensor | float = 1.0) -> Tensor:
    """[B] cross-entropy in nats between the target ``prefer_B`` = P(chosen is preferred) and sigmoid(``logit_B``).

    ``prefer_B`` is not clamped, because the unbiased target of robust DPO exceeds 1 (Chowdhury et al. 2024,
    arXiv:2403.00409, eq. 12). This form of the loss never computes 0 * infinity:
    -p log s(z) - (1 - p) log s(-z) = -log s(z) + (1 - p) z.
    """
    return (1 - prefer_B) * logit_B - F.logsigmoid(logit_B)
