"""The forward and backward pass over slabs of the vocabulary. A backend defines the computation within a block.

Letters: T positions, G of them with a gradient, R rows of one block of them, D hidden width, V vocabulary, S columns of
one slab of it. With z the logits, p = softmax(z), y the target: dlogp/dz = onehot(y) - p; README.md derives the rest.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ops.sequence_logratio.operator import Normalized, Problem
from ops.sequence_logratio.reference import IGNORE

# bytes of one fp32 block of logits. CPU: the block fits the cache; whole steps with 4 MiB were 0 to 3 % faster.
# CUDA: untuned
BLOCK_BYTES = {"cpu": 2 * 2**20, "cuda": 256 * 2**20}
# columns. CUDA: a slab reads and writes the gradient of all hidden states; at 790 TFLOP/s and 4.3 TB/s that takes
# 12TD / 4.3e12 seconds beside products of 6TDS / 790e12, a share of 367 / S. Where T is large, rows are cut instead
NARROWEST_SLAB = {"cpu": 512, "cuda": 4096}


class Running(NamedTuple):
    """Log-sum-exp of the slabs so far, without the target; updated in place."""

    max_T: Tensor  # largest logit without the target
    sum_T: Tensor  # sum of exp(z - max) without the target
    target_logit_T: Tensor


class Block(NamedTuple):
    """Some rows, one slab of a head, and the column of each row's target, which may be outside the slab."""

    hidden_RD: Tensor
    weight_SD: Tensor
    bias_S: Tensor | None
    scale: float
    softcap: float | None
    column_R: Tensor
    space_RS: Tensor | None = None  # memory for its logits


# adds a block to its rows' running sums; returns, for at least the first ``graded`` rows, exp(old max - new max), and
# for exactly those exp(z - new max) * dz/d(softcap's argument), 0 at the target, in the dtype of the products
Absorb = Callable[[Block, Running, int], tuple[Tensor, Tensor]]
# from a block, a factor per row, p - 1 of the target and the normalisation:
# factor * (p - onehot) * dz/d(softcap's argument), same dtype
Residual = Callable[[Block, Tensor, Tensor, Tensor, Tensor], Tensor]
# multiplies the rows of a matrix by a factor each, in place
Rescale = Callable[[Tensor, Tensor], object]


def blocks(hidden_TD: Tensor, weight_VD: Tensor) -> tuple[int, int]:
    """(rows, columns) of one block of logits. A slab of the head, which may be cast, is no larger than a block."""
    kind = hidden_TD.device.type
    tokens, width = hidden_TD.shape
    return block_shape(kind if kind in BLOCK_BYTES else "cpu", tokens, width, len(weight_VD))


def block_shape(kind: str, tokens: int, width: int, vocabulary: int) -> tuple[int, int]:
    """(rows, columns) of one block of logits on this kind of device."""
    numbers, narrowest = BLOCK_BYTES[kind] // 4, NARROWEST_SLAB[kind]
    rows = max(1, min(tokens, numbers // narrowest))
    columns = numbers // max(rows, width) // 128 * 128
    return rows, min(vocabulary, max(narrowest, columns))


def spans(length: int, step: int) -> Iterator[slice]:
    """Consecutive slices of ``step`` that cover ``length``."""
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


def operand_dtype(hidden_TD: Tensor) -> torch.dtype:
    """The dtype of products: the model's on tensor cores, fp32 on a CPU, where emulated bf16 is 20 times slower."""
    return hidden_TD.dtype if hidden_TD.is_cuda else torch.promote_types(hidden_TD.dtype, torch.float32)


def workspace(hidden_TD: Tensor, rows: int, columns: int) -> Tensor | None:
    """Memory that all blocks share, so that it stays in a CPU's cache. CUDA's allocator already reuses memory."""
    return None if hidden_TD.is_cuda else hidden_TD.new_empty(rows * columns, dtype=operand_dtype(hidden_TD))


def row_blocks(
    problem: Problem, slab: slice, weight_SD: Tensor, rows: int, space: Tensor | None
) -> Iterator[tuple[slice, Block]]:
    """The blocks of one slab of the head, with their rows. All blocks write to the same memory."""
    hidden_TD, _, target_T, bias_V, scale, softcap = problem
    bias_S = None if bias_V is None else bias_V[slab]
    for rows_R in spans(len(hidden_TD), rows):
        hidden_RD, column_R = hidden_TD[rows_R], target_T[rows_R] - slab.start
        shape = len(hidden_RD), len(weight_SD)
        space_RS = None if space is None else space[: math.prod(shape)].view(shape)
        yield rows_R, Block(hidden_RD, weight_SD, bias_S, scale, softcap, column_R, space_RS)


def product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """A @ b, summed in fp32 (fp64 for fp64). The result has that type, unless ``out`` has the operands' dtype."""
    if out is None and a.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a, b, out=out)


def add_product(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Total + A @ b, in place."""
    if a.dtype == total.dtype:
        return total.addmm_(a, b)
    if total.dtype == torch.float32 and adds_products(total.device, a.dtype):
        return torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    return total.add_(product(a, b))


@functools.cache
def adds_products(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch adds products of ``dtype`` to an fp32 matrix without a temporary and without rounding.

    The answer comes from one small product on the device, whose exact sums need more bits than ``dtype`` has.
    """
    a, b = (torch.arange(256, device=device).view(16, 16).remainder(top).to(dtype) for top in (97, 89))
    sums = torch.full((16, 16), 2.0**-4, device=device)
    exact = sums.double() + a.double() @ b.double()
    try:
        torch.addmm(sums, a, b, out_dtype=torch.float32, out=sums)
    except (RuntimeError, TypeError):  # NotImplementedError is a RuntimeError
        return False
    return bool(torch.equal(sums.double(), exact))


def rescale(sums_GD: Tensor, decay_G: Tensor) -> None:
    """A ``Rescale`` step in plain torch."""
    sums_GD.mul_(decay_G[:, None])


def forward(problem: Problem, slope_rows: int, absorb: Absorb, rescale: Rescale = rescale) -> tuple[Normalized, Tensor]:
    """One pass over the head: 2TDV operations, and another 2GDV for the slopes of G rows."""
    running, pull_GD = accumulate(problem, slope_rows, absorb, rescale)
    normalized = normalize(running, problem.target_T)
    if not slope_rows:
        return normalized, pull_GD
    _, weight_VD, target_T, _, scale, softcap = problem.rows(slope_rows)
    # dlogp/dh = scale * ((1 - p_y) W_y - sum over v != y of p_v W_v), each column times the softcap's derivative
    own_G = -torch.expm1(normalized.logp_T[:slope_rows])
    if softcap is not None:
        own_G = own_G * (1 - (running.target_logit_T[:slope_rows] / softcap).square())
    slope_GD = pull_GD.mul_(-torch.exp(-normalized.log_sum_T)[:slope_rows, None])
    slope_GD.addcmul_(own_G[:, None], weight_VD[target_T.clamp(min=0)].to(slope_GD.dtype)).mul_(scale)
    return normalized, slope_GD.masked_fill_((target_T == IGNORE)[:, None], 0)


def accumulate(problem: Problem, slope_rows: int, absorb: Absorb, rescale: Rescale = rescale) -> tuple[Running, Tensor]:
    """The running sums after all slabs, and sum over v != y of exp(z_v - max) W_v for the first ``slope_rows`` rows."""
    hidden_TD, weight_VD = problem.hidden_TD, problem.weight_VD
    operand, precise = operand_dtype(hidden_TD), torch.promote_types(hidden_TD.dtype, torch.float32)
    rows, columns = blocks(hidden_TD, weight_VD)
    space = workspace(hidden_TD, rows, columns)
    problem = problem._replace(hidden_TD=hidden_TD.to(operand))
    lowest_T = hidden_TD.new_full((len(hidden_TD),), -torch.inf, dtype=precise)
    running = Running(lowest_T, torch.zeros_like(lowest_T), lowest_T.clone())
    pull_GD = hidden_TD.new_zeros((slope_rows, hidden_TD.shape[1]), dtype=precise)
    for slab in spans(len(weight_VD), columns):
        weight_SD = weight_VD[slab].to(operand)
        for rows_R, block in row_blocks(problem, slab, weight_SD, rows, space):
            graded = max(0, min(rows_R.stop, slope_rows) - rows_R.start)
            decay_R, exp_GS = absorb(block, Running(*(state_T[rows_R] for state_T in running)), graded)
            if graded:
                own_GD = pull_GD[rows_R.start : rows_R.start + graded]
                rescale(own_GD, decay_R[:graded])
                add_product(own_GD, exp_GS, weight_SD)
    return running, pull_GD


def merge(parts: Running) -> Running:
    """The running sums over the whole vocabulary from those of its parts, [parts, T] each, in their order."""
    max_T = parts.max_T.amax(0)
    sum_T = (parts.sum_T * torch.exp(parts.max_T - finite(max_T))).sum(0)
    return Running(max_T, sum_T, parts.target_logit_T.amax(0))


def normalize(running: Running, target_T: Tensor) -> Normalized:
    """The log-prob of the target and the normalisation of the logits, after the last slab."""
    # summing without the target keeps logp <= 0, and keeps the digits of 1 - p for p near 1
    shift_T = finite(running.max_T)
    log_others_T, lead_T = running.sum_T.log(), running.target_logit_T - shift_T
    logp_T = -torch.logaddexp(torch.zeros_like(lead_T), log_others_T - lead_T)
    return Normalized(logp_T.where(target_T != IGNORE, 0), shift_T, torch.logaddexp(log_others_T, lead_T))


def backward(
    problem: Problem, grad_T: Tensor, normalized: Normalized, needs: tuple[bool, bool, bool], residual: Residual
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Recomputes the logits (2TDV operations); the gradients of hidden states and weight take 2TDV each."""
    hidden_TD, weight_VD, _, bias_V, scale, _ = problem
    logp_T, shift_T, log_sum_T = normalized
    need_hidden, need_weight, need_bias = needs
    operand, precise = operand_dtype(hidden_TD), logp_T.dtype
    rows, columns = blocks(hidden_TD, weight_VD)
    space = workspace(hidden_TD, rows, columns)
    grad_hidden_TD = torch.zeros_like(hidden_TD, dtype=precise) if need_hidden else None
    unwritten = torch.empty_like if len(hidden_TD) else torch.zeros_like
    grad_weight_VD = unwritten(weight_VD) if need_weight else None
    grad_bias_V = unwritten(bias_V) if need_bias and bias_V is not None else None
    # write the product directly into the gradient if the dtypes agree and no later block is added below fp32
    in_place = weight_VD.dtype == operand and (rows >= len(hidden_TD) or operand == precise)
    factor_T = grad_T * -scale
    problem = problem._replace(hidden_TD=hidden_TD.to(operand))
    miss_T = torch.expm1(logp_T)  # p_y - 1 without cancellation
    for slab in spans(len(weight_VD), columns):
        weight_SD = weight_VD[slab].to(operand)
        slab_weight = slab_bias = None
        for rows_R, block in row_blocks(problem, slab, weight_SD, rows, space):
            residual_RS = residual(block, *(value_T[rows_R] for value_T in (factor_T, miss_T, shift_T, log_sum_T)))
            if grad_hidden_TD is not None:
                add_product(grad_hidden_TD[rows_R], residual_RS, weight_SD)
            if grad_weight_VD is not None:
                factors = residual_RS.T, block.hidden_RD
                if slab_weight is not None:
                    add_product(slab_weight, *factors)
                else:
                    slab_weight = product(*factors, out=grad_weight_VD[slab] if in_place else None)
            if grad_bias_V is not None:
                slab_bias = _plus(slab_bias, residual_RS.sum(0, dtype=precise))
        if grad_weight_VD is not None and slab_weight is not None and not in_place:
            grad_weight_VD[slab] = slab_weight
        if grad_bias_V is not None and slab_bias is not None:
            grad_bias_V[slab] = slab_bias
    return grad_hidden_TD, grad_weight_VD, grad_bias_V


def finite(max_T: Tensor) -> Tensor:
    """Replaces a maximum over no logits by 0 (a slab whose only column is the target)."""
    return max_T.where(max_T > -torch.inf, 0)


def _plus(total: Tensor | None, part: Tensor) -> Tensor:
    return part if total is None else total.add_(part)
