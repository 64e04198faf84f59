"""Log-probs and entropies from existing logits, converted to fp32 a few rows at a time.

Letters: T positions, R rows of one block of them, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from ops.sequence_logratio import slabs
from ops.sequence_logratio.chunked import LOG2_E
from ops.sequence_logratio.operator import Normalized
from ops.sequence_logratio.reference import IGNORE
from ops.sequence_logratio.slabs import Running


def logits_token_logp(logit_TV: Tensor, target_T: Tensor) -> Tensor:
    """[T] log softmax(logits)[target] in fp32 (fp64 for float64), 0 for a target of -100; differentiable.

    The gradient has the dtype of the logits. It is the only other [T, V] tensor.

    Example:
        >>> logits_token_logp(torch.zeros(2, 4), torch.tensor([1, -100]))  # -log 4
        tensor([-1.3863,  0.0000])
    """
    return logits_token_stats(logit_TV, target_T)[0]


def logits_token_stats(logit_TV: Tensor, target_T: Tensor) -> tuple[Tensor, Tensor]:
    """(logp_T, entropy_T) in nats from one pass; no gradient flows through the entropy.

    Raises:
        ValueError: On invalid shapes or an invalid target dtype.

    Example:
        >>> logits_token_stats(torch.zeros(1, 4), torch.tensor([1]))  # the entropy of 4 equal tokens is log 4
        (tensor([-1.3863]), tensor([1.3863]))
    """
    if logit_TV.ndim != 2 or target_T.shape != logit_TV.shape[:1] or target_T.dtype != torch.int64:
        raise ValueError(
            f"need logits [T, V] and int64 targets [T], got {tuple(logit_TV.shape)}, "
            f"{target_T.dtype} {tuple(target_T.shape)}"
        )
    logp_T, _, _, entropy_T = _forward(logit_TV, target_T)
    return logp_T, entropy_T


@torch.library.custom_op("sequence_logratio::logits", mutates_args=())
def _forward(logit_TV: Tensor, target_T: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    precise = torch.promote_types(logit_TV.dtype, torch.float32)
    out_4T = logit_TV.new_empty((4, len(logit_TV)), dtype=precise)
    for rows_R in slabs.spans(len(logit_TV), _rows(logit_TV)):
        wide_RV, column_R1 = _widened(logit_TV, rows_R), target_T[rows_R, None].clamp(min=0)
        picked_R = wide_RV.gather(1, column_R1)[:, 0]
        wide_RV.scatter_(1, column_R1, -torch.inf)
        max_R = wide_RV.amax(1)
        gap_RV = wide_RV.sub_(slabs.finite(max_R)[:, None])
        exp_RV = gap_RV.mul(LOG2_E).exp2_()
        sum_R = exp_RV.sum(1)
        normalized = slabs.normalize(Running(max_R, sum_R, picked_R), target_T[rows_R])
        # H = log_sum - sum over v of p_v (z_v - shift); the target's term is added here, the sums leave it out
        lead_R = picked_R - normalized.shift_T
        others_R = exp_RV.mul_(gap_RV.nan_to_num_(neginf=0.0)).sum(1) * torch.exp(-normalized.log_sum_T)
        own_R = torch.exp(lead_R - normalized.log_sum_T) * lead_R
        out_4T[:, rows_R] = torch.stack([*normalized, normalized.log_sum_T - others_R - own_R])
    return out_4T[0].clone(), out_4T[1].clone(), out_4T[2].clone(), out_4T[3].clone()


@_forward.register_fake
def _(logit_TV: Tensor, target_T: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    precise = torch.promote_types(logit_TV.dtype, torch.float32)
    one, two, three, four = (logit_TV.new_empty(len(logit_TV), dtype=precise) for _ in range(4))
    return one, two, three, four


@torch.library.custom_op("sequence_logratio::logits_backward", mutates_args=())
def _backward(
    grad_T: Tensor, logit_TV: Tensor, target_T: Tensor, logp_T: Tensor, shift_T: Tensor, log_sum_T: Tensor
) -> Tensor:
    grad_T = grad_T.where(target_T != IGNORE, 0)
    grad_TV = torch.empty_like(logit_TV)
    for rows_R in slabs.spans(len(logit_TV), _rows(logit_TV)):
        normalized = Normalized(logp_T[rows_R, None], shift_T[rows_R, None], log_sum_T[rows_R, None])
        p_RV = _widened(logit_TV, rows_R).sub_(normalized.shift_T).sub_(normalized.log_sum_T).exp_()
        p_RV.scatter_(1, target_T[rows_R, None].clamp(min=0), torch.expm1(normalized.logp_T))
        grad_TV[rows_R] = p_RV.mul_(-grad_T[rows_R, None])
    return grad_TV


@_backward.register_fake
def _(grad_T: Tensor, logit_TV: Tensor, target_T: Tensor, logp_T: Tensor, shift_T: Tensor, log_sum_T: Tensor) -> Tensor:
    return torch.empty_like(logit_TV)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output[:3])


def _vjp(ctx: Any, grad_T: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, None]:
    return (None if grad_T is None else _backward(grad_T, *ctx.saved_tensors)), None


torch.library.register_autograd("sequence_logratio::logits", _vjp, setup_context=_setup_context)


def _rows(logit_TV: Tensor) -> int:
    budget = slabs.BLOCK_BYTES.get(logit_TV.device.type, slabs.BLOCK_BYTES["cpu"])
    return max(1, budget // (4 * max(1, logit_TV.shape[1])))


def _widened(logit_TV: Tensor, rows_R: slice) -> Tensor:
    """A copy of some rows in fp32 or wider, which may be overwritten."""
    return logit_TV[rows_R].to(torch.promote_types(logit_TV.dtype, torch.float32), copy=True)
