"""The definition in plain torch: differentiable, also in float64, and the expected result in other backends' tests."""

import torch
from torch import Tensor

IGNORE = -100


def unsupported(hidden_TD: Tensor, weight_VD: Tensor) -> str | None:
    """The reference runs anywhere."""
    return None


def token_logp(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    target_T: Tensor,
    bias_V: Tensor | None,
    scale: float,
    softcap: float | None,
    grad_rows: int | None = None,
) -> Tensor:
    """Log softmax(z)[target], 0 for an ignored target, with z = cap * tanh(scale * (h W^T + b) / cap).

    ``grad_rows`` lets other backends skip rows whose result the caller detaches. Autograd needs no such hint.
    """
    precise = torch.promote_types(hidden_TD.dtype, torch.float32)
    with torch.autocast(hidden_TD.device.type, enabled=False):
        logit_TV = torch.nn.functional.linear(
            hidden_TD.to(precise), weight_VD.to(precise), None if bias_V is None else bias_V.to(precise)
        )
        logit_TV = logit_TV * scale
        if softcap is not None:
            logit_TV = softcap * torch.tanh(logit_TV / softcap)
        # never > 0: torch computes (z - max) - log(sum of exp(z - max)), and the sum contains exp(0) = 1
        return -torch.nn.functional.cross_entropy(logit_TV, target_T, ignore_index=IGNORE, reduction="none")
