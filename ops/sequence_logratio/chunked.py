"""Slabs of the vocabulary in plain torch, on CPU and CUDA. The [T, V] matrix is never stored.

Letters: T positions, G of them with a gradient, R rows of one block of them, D hidden width, V vocabulary, S columns of
one slab of it.
"""

import math
from functools import partial

import torch
from torch import Tensor

from ops.sequence_logratio import slabs
from ops.sequence_logratio.operator import register
from ops.sequence_logratio.slabs import Block, Running, finite

# powers of two, because exp takes 15 to 50 times as long if its result underflows, as most do for peaked logits
LOG2_E = math.log2(math.e)


def unsupported(hidden_TD: Tensor, weight_VD: Tensor) -> str | None:
    """Requires a device whose matrix product is known to give fp32 logits."""
    device = hidden_TD.device.type
    return None if device in slabs.BLOCK_BYTES else f"its products are written for cpu and cuda, not {device}"


def absorb(block: Block, running: Running, graded: int) -> tuple[Tensor, Tensor]:
    """An ``Absorb`` step; several passes over a block that stays in the CPU's cache."""
    logit_RS = logits(block)
    curve_GS = _curve(logit_RS[:graded], block.softcap)
    decay_R = shift(logit_RS, block, running)
    exp_RS = add_up(logit_RS, running, decay_R, out=logit_RS)
    exp_GS = exp_RS[:graded] if curve_GS is None else exp_RS[:graded].mul_(curve_GS)
    return decay_R, exp_GS.to(block.weight_SD.dtype)


def shift(logit_RS: Tensor, block: Block, running: Running) -> Tensor:
    """exp(old max - new max) [R]. In place, logits become z - new max (-inf at the target, which is kept apart)."""
    here_R1, column_R1 = target_column(block)
    picked_R1 = logit_RS.gather(1, column_R1)
    running.target_logit_T.copy_(torch.where(here_R1[:, 0], picked_R1[:, 0], running.target_logit_T))
    logit_RS.scatter_(1, column_R1, torch.where(here_R1, -torch.inf, picked_R1))
    max_R = torch.maximum(running.max_T, logit_RS.amax(1))
    logit_RS.sub_(finite(max_R)[:, None])
    decay_R = torch.exp(running.max_T - finite(max_R))
    running.max_T.copy_(max_R)
    return decay_R


def add_up(shifted_RS: Tensor, running: Running, decay_R: Tensor, out: Tensor | None) -> Tensor:
    """exp(z - max) [R, S] from the results of ``shift``, added to the rows' running sums."""
    exp_RS = torch.mul(shifted_RS, LOG2_E, out=out).exp2_()
    running.sum_T.mul_(decay_R).add_(exp_RS.sum(1))
    return exp_RS


def residual(block: Block, factor_R: Tensor, miss_R: Tensor, shift_R: Tensor, log_sum_R: Tensor) -> Tensor:
    """A ``Residual`` step."""
    logit_RS = logits(block)
    curve_RS = _curve(logit_RS, block.softcap)
    # the rounding of shift * log2(e) is the same factor for a whole row: 2^excess, the result for z = shift (exact: 1)
    start_R = -LOG2_E * shift_R
    excess_R = torch.add(start_R, shift_R, alpha=LOG2_E)
    exp_RS = torch.add(start_R[:, None], logit_RS, alpha=LOG2_E, out=logit_RS).exp2_()
    residual_RS = exp_RS.mul_((factor_R * torch.exp(-log_sum_R) * torch.exp2(-excess_R))[:, None])
    own_R1 = (factor_R * miss_R)[:, None]
    here_R1, column_R1 = target_column(block)
    residual_RS.scatter_(1, column_R1, torch.where(here_R1, own_R1, residual_RS.gather(1, column_R1)))
    if curve_RS is not None:
        residual_RS *= curve_RS
    return residual_RS.to(block.weight_SD.dtype)


def logits(block: Block) -> Tensor:
    """softcap(scale * (h W^T + b)), [R, S], fp32 or wider."""
    logit_RS = slabs.product(block.hidden_RD, block.weight_SD.T, block.space_RS)
    if block.bias_S is not None:
        logit_RS += block.bias_S
    if block.scale != 1.0:
        logit_RS *= block.scale
    if block.softcap is not None:
        logit_RS.div_(block.softcap).tanh_().mul_(block.softcap)
    return logit_RS


def _curve(logit_RS: Tensor, softcap: float | None) -> Tensor | None:
    """Derivative of cap * tanh(x / cap), from its value."""
    return None if softcap is None else 1 - (logit_RS / softcap).square()


def target_column(block: Block) -> tuple[Tensor, Tensor]:
    """Whether the target lies in the slab, and its column there (any valid column elsewhere), both [R, 1]."""
    column_R1, width = block.column_R[:, None], len(block.weight_SD)
    return (column_R1 >= 0) & (column_R1 < width), column_R1.clamp(0, width - 1)


token_logp = register("chunked", partial(slabs.forward, absorb=absorb), partial(slabs.backward, residual=residual))
