"""The definition, in plain torch. Differentiable, float64-able, and the oracle of every other backend's tests."""

import torch
from torch import Tensor

IGNORE = -100


def unsupported(hidden_TD: Tensor, weight_VD: Tensor) -> str | None:
    """The reference runs anywhere."""
    return None


def token_logp(
    hidden_TD: Tensor, weight_VD: Tensor, target_T: Tensor, bias_V: Tensor | None, scale: float, softcap: float | None
) -> Tensor:
    """The log-prob of each target: z[target] - logsumexp(z), z = cap * tanh(scale * (h W^T + b) / cap)."""
    precise = torch.promote_types(hidden_TD.dtype, torch.float32)
    logit_TV = torch.nn.functional.linear(
        hidden_TD.to(precise), weight_VD.to(precise), None if bias_V is None else bias_V.to(precise)
    )
    logit_TV = logit_TV * scale
    if softcap is not None:
        logit_TV = softcap * torch.tanh(logit_TV / softcap)
    scored_T = target_T != IGNORE
    picked_T = logit_TV.gather(-1, target_T.where(scored_T, 0).unsqueeze(-1)).squeeze(-1)
    return (picked_T - logit_TV.logsumexp(-1)).where(scored_T, 0.0)
