"""The mass of plausible tokens under two heads, in slabs of the vocabulary. The [T, V] matrices are never stored.

Letters: T positions, R rows of one block of them, D hidden width, V vocabulary, S columns of one slab of it. z are the
logits of the policy and u those of the reference. K is the set of plausible tokens of a position.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ops.sequence_logratio import chunked, slabs
from ops.sequence_logratio.api import Head, checked
from ops.sequence_logratio.operator import Normalized, Problem
from ops.sequence_logratio.reference import IGNORE
from ops.sequence_logratio.slabs import Block, finite


def support_logratio(policy: Head, reference: Head, floor: float) -> Tensor:
    """[T] min(0, log of policy / reference) of the mass of plausible tokens, in nats.

    A token is plausible if the reference gives it at least ``floor``; if there is none, the likeliest token is. The
    reference and ``floor`` get no gradient. The backward pass computes both models' logits again.

    Operations: 6TDV forward (the reference twice, because its normalisation decides which tokens are plausible), and
    4TDV backward, with another 2TDV for each of the gradients of the policy's hidden states and head.

    Args:
        policy: Hidden states and head of the policy.
        reference: Hidden states and head of the reference, at the same positions.
        floor: Probability in (0, 1).

    Returns:
        fp32 (float64 for float64 inputs).

    Raises:
        ValueError: On invalid shapes, dtypes or ``floor``, and if positions or vocabularies of the two differ.

    Example:
        >>> policy, reference = Head(torch.ones(1, 1), torch.zeros(4, 1)), Head(torch.ones(1, 1), torch.zeros(4, 1))
        >>> reference.weight_VD[:2] = 9.0  # two tokens of probability 1/2; the policy gives them 1/4 each
        >>> support_logratio(policy, reference, 0.1)
        tensor([-0.6930])
    """
    if not 0 < floor < 1:
        raise ValueError(f"floor must lie in (0, 1), got {floor}")
    shapes = [(len(head.hidden_TD), len(head.weight_VD)) for head in (policy, reference)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"positions and vocabulary of the policy {shapes[0]} and the reference {shapes[1]} differ")
    ignored_T = torch.full((shapes[0][0],), IGNORE, device=policy.hidden_TD.device)  # no position has a target
    mine, theirs = (checked(head, ignored_T) for head in (policy, reference))
    logratio_T: Tensor = _Support.apply(*mine, *theirs, ignored_T, math.log(floor))
    return logratio_T.clamp(max=0)


class _Sums(NamedTuple):
    """Log-sum-exp of the slabs so far; updated in place."""

    max_T: Tensor
    sum_T: Tensor

    @classmethod
    def empty(cls, hidden_TD: Tensor, precise: torch.dtype) -> "_Sums":
        lowest_T = hidden_TD.new_full((len(hidden_TD),), -torch.inf, dtype=precise)
        return cls(lowest_T, torch.zeros_like(lowest_T))


class _Support(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        mine, theirs, log_floor = _problems(inputs)
        precise = torch.promote_types(mine.hidden_TD.dtype, torch.float32)
        with torch.autocast(mine.hidden_TD.device.type, enabled=False):
            rows, columns = slabs.blocks(mine.hidden_TD, mine.weight_VD)
            theirs_T, all_T, kept_T = (_Sums.empty(mine.hidden_TD, precise) for _ in range(3))
            for rows_R, other in _blocks(theirs, rows, columns):
                _add(chunked.logits(other), theirs_T, rows_R)
            log_sum_T = theirs_T.sum_T.log()
            # in nats below the likeliest token, which must stay above it even if its logit is rounded differently below
            slack_T = 8 * torch.finfo(precise).eps * (1 + theirs_T.max_T.abs())
            bar_T = torch.minimum(-slack_T, log_floor + log_sum_T)
            held_T = torch.zeros_like(log_sum_T)
            for rows_R, block, other in _pairs(mine, theirs, rows, columns):
                fall_RS = chunked.logits(other).sub_(theirs_T.max_T[rows_R, None])
                outside_RS = fall_RS < bar_T[rows_R, None]
                held_T[rows_R] += _exp(fall_RS.masked_fill_(outside_RS, -torch.inf)).sum(1)
                logit_RS = chunked.logits(block)
                _add(logit_RS, all_T, rows_R)
                _add(logit_RS.masked_fill_(outside_RS, -torch.inf), kept_T, rows_R)
            mass_T = kept_T.max_T - all_T.max_T + kept_T.sum_T.log() - all_T.sum_T.log()
            logratio_T = mass_T - (held_T.log() - log_sum_T)
        tensors = [x for x in inputs if isinstance(x, Tensor)]
        ctx.layout = [isinstance(x, Tensor) or x for x in inputs]
        ctx.save_for_backward(*tensors, theirs_T.max_T, bar_T, *all_T, *kept_T, logratio_T)
        return logratio_T

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_T: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        inputs = [next(saved) if x is True else x for x in ctx.layout]
        max_T, bar_T, all_max_T, all_sum_T, kept_max_T, kept_sum_T, logratio_T = saved
        mine, theirs, _ = _problems(inputs)
        needs = ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[2]
        rows, columns = slabs.blocks(mine.hidden_TD, mine.weight_VD)
        log_kept_T = kept_sum_T.log()
        pairs = _pairs(mine, theirs, rows, columns)  # in the order of the blocks of slabs.backward

        def residual(block: Block, factor_R: Tensor, miss_R: Tensor, shift_R: Tensor, log_sum_R: Tensor) -> Tensor:
            """Factor * (p - p of the tokens of K / mass of K) times the softcap's derivative."""
            rows_R, _, other = next(pairs)
            outside_RS = chunked.logits(other).sub_(max_T[rows_R, None]) < bar_T[rows_R, None]
            logit_RS = chunked.logits(block)
            p_RS = _exp((logit_RS - shift_R[:, None]).sub_(log_sum_R[:, None]))
            within_RS = (logit_RS - kept_max_T[rows_R, None]).sub_(log_kept_T[rows_R, None])
            p_RS -= _exp(within_RS.masked_fill_(outside_RS, -torch.inf))
            if block.softcap is not None:
                p_RS *= 1 - (logit_RS / block.softcap).square()
            return (p_RS * factor_R[:, None]).to(block.weight_SD.dtype)

        lost_T = grad_T.where(logratio_T < 0, 0).contiguous()
        with torch.autocast(grad_T.device.type, enabled=False):
            state = Normalized(torch.zeros_like(all_sum_T), all_max_T, all_sum_T.log())
            hidden, weight, bias = slabs.backward(mine, lost_T, state, needs, residual)
        hidden = None if hidden is None else hidden.to(mine.hidden_TD.dtype)
        return hidden, weight, bias, *(None,) * (len(inputs) - 3)


def _problems(inputs: Any) -> tuple[Problem, Problem, float]:
    *heads, target_T, log_floor = inputs
    mine, theirs = Head(*heads[:5]), Head(*heads[5:])
    both = [Problem(h.hidden_TD, h.weight_VD, target_T, h.bias_V, float(h.scale), h.softcap) for h in (mine, theirs)]
    return both[0], both[1], log_floor


def _blocks(problem: Problem, rows: int, columns: int) -> Iterator[tuple[slice, Block]]:
    """The blocks of one model, slab by slab."""
    problem = problem._replace(hidden_TD=problem.hidden_TD.to(slabs.operand_dtype(problem.hidden_TD)))
    space = slabs.workspace(problem.hidden_TD, rows, columns)
    for slab in slabs.spans(len(problem.weight_VD), columns):
        weight_SD = problem.weight_VD[slab].to(problem.hidden_TD.dtype)
        yield from slabs.row_blocks(problem, slab, weight_SD, rows, space)


def _pairs(mine: Problem, theirs: Problem, rows: int, columns: int) -> Iterator[tuple[slice, Block, Block]]:
    """The blocks of both models at the same rows and columns, slab by slab."""
    both = zip(_blocks(mine, rows, columns), _blocks(theirs, rows, columns), strict=True)
    return ((rows_R, block, other) for (rows_R, block), (_, other) in both)


def _add(logit_RS: Tensor, sums: _Sums, rows_R: slice) -> None:
    """Adds the exponentials of one block to the sums of its rows."""
    old_R = sums.max_T[rows_R].clone()
    new_R = torch.maximum(old_R, logit_RS.amax(1))
    sum_R = _exp(logit_RS - finite(new_R)[:, None]).sum(1)
    sums.sum_T[rows_R] = sums.sum_T[rows_R] * torch.exp(old_R - finite(new_R)) + sum_R
    sums.max_T[rows_R] = new_R


def _exp(x_RS: Tensor) -> Tensor:
    """In place, by powers of two, which are fast on a CPU where the result underflows."""
    return x_RS.mul_(chunked.LOG2_E).exp2_()
