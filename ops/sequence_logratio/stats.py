"""Statistics of the next-token distributions of two heads from one pass in slabs of the vocabulary.

Letters: T positions, R rows of one block of them, V vocabulary, S columns of one slab of it. z are the logits of the
policy and u those of the reference; README.md derives the sums.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ops.sequence_logratio import fused, slabs
from ops.sequence_logratio.api import Head, checked, choose
from ops.sequence_logratio.chunked import add_up, logits, shift, target_column
from ops.sequence_logratio.operator import Problem
from ops.sequence_logratio.reference import IGNORE
from ops.sequence_logratio.slabs import Block, Running, finite


class TokenStats(NamedTuple):
    """[T] each, in nats, fp32 (fp64 for float64), without gradient.

    Example:
        >>> TokenStats(*torch.tensor([[-1.0], [-2.0], [0.1], [0.5]])).kl_T
        tensor([0.1000])
    """

    policy_logp_T: Tensor  # of the target, <= 0; 0 if it is ignored
    reference_logp_T: Tensor
    kl_T: Tensor  # KL(policy || reference) over the full vocabulary, >= 0
    entropy_T: Tensor  # of the policy, >= 0


class _Moments(NamedTuple):
    """Sums over the slabs so far, without the target, with z' = z - max and u' = u - max; updated in place."""

    level_T: Tensor  # of exp(z') z', never positive
    gap_T: Tensor  # of exp(z') (z' - u')


# adds one slab of some rows of both models; the last argument is memory for their exponentials
Absorb = Callable[[tuple[Block, Block], tuple[Running, Running], _Moments, Tensor | None], None]


@torch.no_grad()
def token_stats(policy: Head, reference: Head, target_T: Tensor, *, backend: str = "auto") -> TokenStats:
    """Log-probs of the targets under both, KL(policy || reference) and the policy's entropy, from one pass over both.

    KL and entropy are those of the whole distribution, also at ignored targets. The widths of the two models may
    differ.

    Args:
        policy: Hidden states and head of the policy.
        reference: Hidden states and head of the reference, at the same positions.
        target_T: int64 token ids; -100 gives log-probs of 0.
        backend: As for ``token_logp``. With ``fused`` a kernel reads each logit once; all others use torch's blocks.

    Raises:
        ValueError: In the cases of ``token_logp``, and if positions or vocabularies of the two differ.

    Example:
        >>> policy, reference = (Head(torch.zeros(1, 2), torch.ones(4, 2)) for _ in range(2))
        >>> found = token_stats(policy, reference, torch.tensor([3]))
        >>> found.policy_logp_T, found.entropy_T
        (tensor([-1.3863]), tensor([1.3863]))
    """
    shapes = [(len(head.hidden_TD), len(head.weight_VD)) for head in (policy, reference)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"positions and vocabulary of the policy {shapes[0]} and the reference {shapes[1]} differ")
    heads = checked(policy, target_T), checked(reference, target_T)
    chosen = {choose(backend, head.hidden_TD, head.weight_VD) for head in heads}
    absorb: Absorb = fused.absorb_stats if chosen == {fused} else _absorb
    rows, columns = min(slabs.blocks(head.hidden_TD, head.weight_VD) for head in heads)
    spaces = [slabs.workspace(head.hidden_TD, rows, columns) for head in heads]
    exp_space = slabs.workspace(heads[0].hidden_TD, rows, columns)
    both = [_running(head) for head in heads]
    moments = _Moments(*(torch.zeros_like(both[0].sum_T) for _ in range(2)))
    problems = [_problem(head, target_T) for head in heads]
    with torch.autocast(target_T.device.type, enabled=False):
        for slab in slabs.spans(len(policy.weight_VD), columns):
            one, other = (
                slabs.row_blocks(problem, slab, problem.weight_VD[slab].to(problem.hidden_TD.dtype), rows, space)
                for problem, space in zip(problems, spaces, strict=True)
            )
            for (rows_R, block), (_, other_block) in zip(one, other, strict=True):
                mine, theirs = (Running(*(state_T[rows_R] for state_T in running)) for running in both)
                sums = _Moments(*(moment_T[rows_R] for moment_T in moments))
                absorb((block, other_block), (mine, theirs), sums, exp_space)
    return _stats(both[0], both[1], moments, target_T)


def _problem(head: Head, target_T: Tensor) -> Problem:
    hidden_TD, weight_VD, bias_V, scale, softcap = head
    operand_TD = hidden_TD.to(slabs.operand_dtype(hidden_TD))
    return Problem(operand_TD, weight_VD, target_T, bias_V, float(scale), softcap)


def _running(head: Head) -> Running:
    """The running sums before the first slab."""
    precise = torch.promote_types(head.hidden_TD.dtype, torch.float32)
    lowest_T = head.hidden_TD.new_full((len(head.hidden_TD),), -torch.inf, dtype=precise)
    return Running(lowest_T, torch.zeros_like(lowest_T), lowest_T.clone())


def _absorb(
    blocks: tuple[Block, Block], running: tuple[Running, Running], moments: _Moments, space: Tensor | None
) -> None:
    """An ``Absorb`` step in plain torch."""
    logit_RS, other_RS = (logits(block) for block in blocks)
    exp_RS = None if space is None else space[: logit_RS.numel()].view(logit_RS.shape)
    old_R, old_other_R = (finite(state.max_T) for state in running)
    decay_R, other_decay_R = (
        shift(block_RS, block, state)
        for block_RS, block, state in zip((logit_RS, other_RS), blocks, running, strict=True)
    )
    rise_R, other_rise_R = finite(running[0].max_T) - old_R, finite(running[1].max_T) - old_other_R
    add_up(other_RS, running[1], other_decay_R, out=exp_RS)
    # convert the sums relative to the old maxima to the new maxima
    moments.level_T.sub_(running[0].sum_T * rise_R).mul_(decay_R)
    moments.gap_T.sub_(running[0].sum_T * (rise_R - other_rise_R)).mul_(decay_R)
    exp_RS = add_up(logit_RS, running[0], decay_R, out=exp_RS)
    for block_RS, block in zip((logit_RS, other_RS), blocks, strict=True):
        _clear_target(block_RS, block)
    gap_RS = torch.sub(logit_RS, other_RS, out=other_RS)
    moments.gap_T.add_(gap_RS.mul_(exp_RS).sum(1))
    moments.level_T.add_(logit_RS.mul_(exp_RS).sum(1))


def _clear_target(shifted_RS: Tensor, block: Block) -> None:
    """Replaces -inf at the target by 0. Its exponential is already 0."""
    here_R1, column_R1 = target_column(block)
    shifted_RS.scatter_(1, column_R1, shifted_RS.gather(1, column_R1).masked_fill_(here_R1, 0))


def _stats(policy: Running, reference: Running, moments: _Moments, target_T: Tensor) -> TokenStats:
    logp_T, _, log_sum_T = slabs.normalize(policy, target_T)
    other_logp_T, _, other_log_sum_T = slabs.normalize(reference, target_T)
    scored_T = target_T != IGNORE
    own_T, others_T = logp_T.exp().where(scored_T, 0), (-torch.expm1(logp_T)).where(scored_T, 1)
    # one column other than the target has z' = 0, so log_sum >= 0, unless the target is the whole vocabulary
    scale_T = torch.exp(-log_sum_T.clamp(min=0))
    entropy_T = others_T * log_sum_T - own_T * logp_T - moments.level_T * scale_T
    own_kl_T = own_T * (logp_T - other_logp_T)
    kl_T = own_kl_T + (moments.gap_T * scale_T - others_T * (log_sum_T - other_log_sum_T))
    # rounding may make a KL of 0 slightly negative
    return TokenStats(logp_T, other_logp_T, kl_T.clamp_(min=0), entropy_T.clamp_(min=0))
