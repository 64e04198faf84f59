"""KL between the next-token distributions of two heads, with gradient to the first of them.

Letters: T positions, R rows of one block of them, D hidden width of one model, V vocabulary. z are the policy's logits
and p = softmax(z); q is the reference's distribution.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ops.sequence_logratio import slabs
from ops.sequence_logratio.api import Head, checked

# logits of one block of positions, for each model. CPU: 32 MiB in fp32; CUDA: 256 MiB, untuned
BLOCK_LOGITS = {"cpu": 2**23, "cuda": 2**26}


def token_kl(policy: Head, reference: Head) -> Tensor:
    """KL(policy || reference) of the next-token distributions over the full vocabulary, with gradient to the policy.

        KL = sum over v of p_v (log p_v - log q_v),   dKL/dz_v = p_v (log p_v - log q_v - KL)

    Positions are computed in blocks of at most ``BLOCK_LOGITS`` logits, and the backward pass computes each block
    again, so no [T, V] is stored. Products use the type of the hidden states on CUDA and fp32 on a CPU. The rest is
    fp32 (fp64 for fp64). There are torch blocks alone; no Triton kernel computes this.

    Args:
        policy: Hidden states and head of the policy. Gradients flow to its hidden states, weight and bias.
        reference: Hidden states and head of the reference at the same positions; no gradient. The widths may differ.

    Returns:
        [T] nats, fp32 (float64 for float64 inputs), >= 0. Infinite logits give NaN.

    Raises:
        ValueError: On invalid shapes or dtypes, and if positions or vocabularies of the two differ.

    Example:
        >>> weight_VD = torch.tensor([[1.0], [0.0]])
        >>> head = Head(torch.tensor([[1.0986]]), weight_VD)  # probabilities of 3/4 and 1/4
        >>> token_kl(head, Head(torch.zeros(1, 1), weight_VD))  # log 2 - H(3/4)
        tensor([0.1308])
    """
    shapes = [(len(head.hidden_TD), len(head.weight_VD)) for head in (policy, reference)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"positions and vocabulary of the policy {shapes[0]} and the reference {shapes[1]} differ")
    target_T = torch.zeros(len(policy.hidden_TD), dtype=torch.int64, device=policy.hidden_TD.device)
    ours = checked(policy, target_T)
    theirs = checked(reference._replace(hidden_TD=reference.hidden_TD.detach()), target_T)
    found: Tensor = _TokenKl.apply(ours.hidden_TD, ours.weight_VD, ours.bias_V, ours, theirs)
    return found


class _TokenKl(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_TD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, policy: Head, reference: Head
    ) -> Tensor:
        precise = torch.promote_types(hidden_TD.dtype, torch.float32)
        ctx.save_for_backward(hidden_TD, weight_VD, bias_V, *reference[:3])
        ctx.functions = policy[3:], reference[3:]
        kl_T = hidden_TD.new_empty(len(hidden_TD), dtype=precise)
        with torch.autocast(hidden_TD.device.type, enabled=False):
            ours, theirs = _cast(policy), _cast(reference)
            for rows in _blocks(policy):
                gap_RV, p_RV, _ = _gap(ours, theirs, rows)
                kl_T[rows] = gap_RV.mul_(p_RV).sum(1)
        return kl_T.clamp_(min=0)  # rounding may make a KL of 0 slightly negative

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_T: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        tensors = ctx.saved_tensors
        policy, reference = Head(*tensors[:3], *ctx.functions[0]), Head(*tensors[3:], *ctx.functions[1])
        hidden_TD, weight_VD, bias_V, scale, softcap = policy
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_hidden_TD = torch.zeros_like(hidden_TD, dtype=grad_T.dtype) if need_hidden else None
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=grad_T.dtype) if need_weight else None
        grad_bias_V = torch.zeros_like(bias_V, dtype=grad_T.dtype) if need_bias and bias_V is not None else None
        with torch.autocast(hidden_TD.device.type, enabled=False):
            ours, theirs = _cast(policy), _cast(reference)
            for rows in _blocks(policy):
                gap_RV, p_RV, logit_RV = _gap(ours, theirs, rows)
                kl_R1 = (gap_RV * p_RV).sum(1, keepdim=True)
                residual_RV = gap_RV.sub_(kl_R1).mul_(p_RV).mul_(scale * grad_T[rows, None])
                if softcap is not None:
                    residual_RV *= 1 - (logit_RV / softcap).square()
                factor_RV = residual_RV.to(ours.weight_VD.dtype)
                if grad_hidden_TD is not None:
                    slabs.add_product(grad_hidden_TD[rows], factor_RV, ours.weight_VD)
                if grad_weight_VD is not None:
                    slabs.add_product(grad_weight_VD, factor_RV.T, ours.hidden_TD[rows])
                if grad_bias_V is not None:
                    grad_bias_V += residual_RV.sum(0)
        return (
            None if grad_hidden_TD is None else grad_hidden_TD.to(hidden_TD.dtype),
            None if grad_weight_VD is None else grad_weight_VD.to(weight_VD.dtype),
            None if grad_bias_V is None or bias_V is None else grad_bias_V.to(bias_V.dtype),
            None,
            None,
        )


def _blocks(head: Head) -> list[slice]:
    """Blocks of positions."""
    logits = BLOCK_LOGITS.get(head.hidden_TD.device.type, BLOCK_LOGITS["cpu"])
    return list(slabs.spans(len(head.hidden_TD), max(1, logits // len(head.weight_VD))))


def _cast(head: Head) -> Head:
    """Hidden states and weight in the type of the products."""
    operand = slabs.operand_dtype(head.hidden_TD)
    return head._replace(hidden_TD=head.hidden_TD.to(operand), weight_VD=head.weight_VD.to(operand))


def _gap(policy: Head, reference: Head, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Log p - log q, p and the policy's logits of a block, [R, V] each."""
    logit_RV, other_RV = (_logits(head, rows) for head in (policy, reference))
    logp_RV = logit_RV.log_softmax(1)
    return logp_RV - other_RV.log_softmax(1), logp_RV.exp(), logit_RV


def _logits(head: Head, rows: slice) -> Tensor:
    """Softcap(scale * (h W^T + b)), [R, V]."""
    logit_RV = slabs.product(head.hidden_TD[rows], head.weight_VD.T)
    if head.bias_V is not None:
        logit_RV += head.bias_V
    if head.scale != 1.0:
        logit_RV *= head.scale
    if head.softcap is not None:
        logit_RV.div_(head.softcap).tanh_().mul_(head.softcap)
    return logit_RV
