"""Slabs of the vocabulary in plain torch, on CPU and CUDA: [T, V] is never held.

Letters: T positions, R rows of one block of them, D hidden width, V vocabulary, S columns of one slab of it.
With z the logits, p = softmax(z) and y the target, dlogp/dz = onehot(y) - p; README.md derives what is computed here.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ops.sequence_logratio.operator import Normalized, Problem, register
from ops.sequence_logratio.reference import IGNORE

# bytes of one fp32 block of logits. CPU: the block stays in the last-level cache. CUDA: untuned
BLOCK_BYTES = {"cpu": 8 * 2**20, "cuda": 512 * 2**20}
NARROWEST_SLAB = 1024


def unsupported(hidden_TD: Tensor, weight_VD: Tensor) -> str | None:
    """Needs a device whose matrix product is known to give fp32 logits."""
    device = hidden_TD.device.type
    return None if device in BLOCK_BYTES else f"its products are written for cpu and cuda, not {device}"


def blocks(hidden_TD: Tensor, weight_VD: Tensor) -> tuple[int, int]:
    """(rows, columns) of one block of logits; a slab of the head, which may be cast, is no larger than a block."""
    numbers = BLOCK_BYTES[hidden_TD.device.type] // 4
    rows = max(1, min(len(hidden_TD), numbers // NARROWEST_SLAB))
    columns = numbers // max(rows, weight_VD.shape[1]) // 128 * 128
    return rows, min(len(weight_VD), max(NARROWEST_SLAB, columns))


def spans(length: int, step: int) -> Iterator[slice]:
    """Consecutive slices of ``step`` that cover ``length``."""
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


def operand_dtype(hidden_TD: Tensor) -> torch.dtype:
    """What products are made of: tensor cores take the model's dtype; a CPU emulates bf16 20 times slower than fp32."""
    return hidden_TD.dtype if hidden_TD.is_cuda else torch.promote_types(hidden_TD.dtype, torch.float32)


def product(a: Tensor, b: Tensor) -> Tensor:
    """A @ b, summed and returned in fp32 (fp64 for fp64)."""
    if a.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a, b)


def logits(hidden_RD: Tensor, weight_SD: Tensor, bias_S: Tensor | None, scale: float, softcap: float | None) -> Tensor:
    """softcap(scale * (h W^T + b)), [R, S], fp32 or wider."""
    logit_RS = product(hidden_RD, weight_SD.T)
    if bias_S is not None:
        logit_RS += bias_S
    if scale != 1.0:
        logit_RS *= scale
    if softcap is not None:
        logit_RS.div_(softcap).tanh_().mul_(softcap)
    return logit_RS


def _forward(problem: Problem, slope_rows: int) -> tuple[Normalized, Tensor]:
    hidden_TD, weight_VD, target_T, bias_V, scale, softcap = problem
    operand, precise = operand_dtype(hidden_TD), torch.promote_types(hidden_TD.dtype, torch.float32)
    rows, columns = blocks(hidden_TD, weight_VD)
    hidden_TD = hidden_TD.to(operand)
    # over the columns that are not the target: running maximum and sum of exp(z - maximum). Leaving the target out
    # keeps logp <= 0, and keeps the digits of 1 - p where the model is sure
    max_T = hidden_TD.new_full((len(hidden_TD),), -torch.inf, dtype=precise)
    sum_T = torch.zeros_like(max_T)
    target_logit_T = torch.full_like(max_T, -torch.inf)
    slope_GD = hidden_TD.new_zeros((slope_rows, hidden_TD.shape[1]), dtype=precise)
    for slab in spans(len(weight_VD), columns):
        weight_SD = weight_VD[slab].to(operand)
        for block in spans(len(hidden_TD), rows):
            logit_RS = logits(hidden_TD[block], weight_SD, None if bias_V is None else bias_V[slab], scale, softcap)
            graded = max(0, min(block.stop, slope_rows) - block.start)
            curve_GS = None if softcap is None or not graded else 1 - (logit_RS[:graded] / softcap).square()
            here_R1, column_R1 = _target_column(target_T[block], slab)
            picked_R1 = logit_RS.gather(1, column_R1)
            target_logit_T[block] = torch.where(here_R1, picked_R1, target_logit_T[block, None]).squeeze(1)
            logit_RS.scatter_(1, column_R1, torch.where(here_R1, -torch.inf, picked_R1))
            old_max_R, max_R = max_T[block], torch.maximum(max_T[block], logit_RS.amax(1))
            shift_R = max_R.where(max_R > -torch.inf, 0)  # a slab of one column that is the target has no maximum
            exp_RS = logit_RS.sub_(shift_R[:, None]).exp_()
            decay_R = torch.exp(old_max_R - shift_R)
            sum_T[block] = sum_T[block] * decay_R + exp_RS.sum(1)
            max_T[block] = max_R
            if graded:
                own_GD = slope_GD[block.start : block.start + graded]
                exp_GS = exp_RS[:graded] if curve_GS is None else exp_RS[:graded].mul_(curve_GS)
                own_GD.mul_(decay_R[:graded, None]).add_(product(exp_GS.to(operand), weight_SD))
    normalized = normalize(max_T, sum_T, target_logit_T, target_T)
    if slope_rows:
        # dlogp/dh = scale * ((1 - p_y) W_y - sum over v != y of p_v W_v), each column with its softcap's derivative
        target_G = target_T[:slope_rows].clamp(min=0)
        own_G = -torch.expm1(normalized.logp_T[:slope_rows])
        if softcap is not None:
            own_G = own_G * (1 - (target_logit_T[:slope_rows] / softcap).square())
        slope_GD.mul_(-torch.exp(-normalized.log_sum_T)[:slope_rows, None])
        slope_GD.addcmul_(own_G[:, None], weight_VD[target_G].to(precise)).mul_(scale)
        slope_GD.masked_fill_((target_T[:slope_rows] == IGNORE)[:, None], 0)
    return normalized, slope_GD


def normalize(max_T: Tensor, sum_T: Tensor, target_logit_T: Tensor, target_T: Tensor) -> Normalized:
    """From the largest logit but the target's, the sum of exp(z - max) over all but the target, and the target's z."""
    log_others_T = sum_T.log()
    shift_T = max_T.where(max_T > -torch.inf, 0)
    lead_T = target_logit_T - shift_T
    # log p_y = -log(1 + sum over v != y of exp(z_v - z_y)): never above 0, exact when close to it
    logp_T = -torch.logaddexp(torch.zeros_like(lead_T), log_others_T - lead_T)
    return Normalized(logp_T.where(target_T != IGNORE, 0), shift_T, torch.logaddexp(log_others_T, lead_T))


def _backward(
    problem: Problem, grad_T: Tensor, normalized: Normalized, needs: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    hidden_TD, weight_VD, target_T, bias_V, scale, softcap = problem
    logp_T, shift_T, log_sum_T = normalized
    need_hidden, need_weight, need_bias = needs
    operand, precise = operand_dtype(hidden_TD), logp_T.dtype
    rows, columns = blocks(hidden_TD, weight_VD)
    grad_hidden_TD = torch.zeros_like(hidden_TD, dtype=precise) if need_hidden else None
    grad_weight_VD = torch.empty_like(weight_VD) if need_weight else None
    grad_bias_V = torch.empty_like(bias_V) if need_bias and bias_V is not None else None
    # the block holds p - onehot(y); the incoming gradient is a factor of each row and goes into h instead
    factor_T = grad_T * -scale
    factored_TD = (hidden_TD * factor_T[:, None]).to(operand) if need_weight else None
    hidden_TD = hidden_TD.to(operand)
    over_sum_T = torch.exp(-log_sum_T)
    miss_T = torch.expm1(logp_T)  # p_y - 1 without the cancellation
    for slab in spans(len(weight_VD), columns):
        weight_SD = weight_VD[slab].to(operand)
        slab_weight = slab_bias = None
        for block in spans(len(hidden_TD), rows):
            diff_RS = logits(hidden_TD[block], weight_SD, None if bias_V is None else bias_V[slab], scale, softcap)
            curve_RS = None if softcap is None else 1 - (diff_RS / softcap).square()
            diff_RS.sub_(shift_T[block, None]).exp_().mul_(over_sum_T[block, None])
            here_R1, column_R1 = _target_column(target_T[block], slab)
            diff_RS.scatter_(1, column_R1, torch.where(here_R1, miss_T[block, None], diff_RS.gather(1, column_R1)))
            if curve_RS is not None:
                diff_RS *= curve_RS
            if grad_bias_V is not None:
                part_S = factor_T[block] @ diff_RS
                slab_bias = part_S if slab_bias is None else slab_bias.add_(part_S)
            diff_RS = diff_RS.to(operand)
            if grad_hidden_TD is not None:
                grad_hidden_TD[block] += product(diff_RS, weight_SD)
            if factored_TD is not None:
                part_SD = product(diff_RS.T, factored_TD[block])
                slab_weight = part_SD if slab_weight is None else slab_weight.add_(part_SD)
        if grad_weight_VD is not None:
            grad_weight_VD[slab] = 0 if slab_weight is None else slab_weight
        if grad_bias_V is not None:
            grad_bias_V[slab] = 0 if slab_bias is None else slab_bias
    return None if grad_hidden_TD is None else grad_hidden_TD.mul_(factor_T[:, None]), grad_weight_VD, grad_bias_V


def _target_column(target_R: Tensor, slab: slice) -> tuple[Tensor, Tensor]:
    """Whether the target lies in the slab, and its column there (any valid column elsewhere), both [R, 1]."""
    column_R1 = target_R[:, None] - slab.start
    width = slab.stop - slab.start
    return (column_R1 >= 0) & (column_R1 < width), column_R1.clamp(0, width - 1)


token_logp = register("chunked", _forward, _backward)
