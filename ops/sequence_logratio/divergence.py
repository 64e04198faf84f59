"""KL between two models' next-token distributions, in slabs of the vocabulary: [T, V] is never held.

Letters: T positions, R rows of one block of them, V vocabulary, S columns of one slab of it.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ops.sequence_logratio import slabs
from ops.sequence_logratio.api import Head
from ops.sequence_logratio.checks import check_head
from ops.sequence_logratio.chunked import LOG2_E, logits
from ops.sequence_logratio.slabs import Block


class _Seen(NamedTuple):
    """Of the slabs so far: the largest z and u, sums of exp(z - max) and exp(u - max), and of exp(z - max) (z - u)."""

    max_R: Tensor
    sum_R: Tensor
    other_max_R: Tensor
    other_sum_R: Tensor
    gap_R: Tensor


@torch.no_grad()
def token_kl(policy: Head, reference: Head) -> Tensor:
    """[T] KL(policy || reference) over the full vocabulary, in nats, >= 0, fp32 (fp64 for float64), without gradient.

    With z the logits of the policy and u of the reference, KL = E_policy[z - u] - (lse z - lse u); all three come from
    one pass over both heads. Widths of the two models may differ.

    Raises:
        ValueError: Where positions or vocabularies of the two differ, or a head does not fit its hidden states.
    """
    for hidden_TD, weight_VD, bias_V, _, _ in (policy, reference):
        check_head(hidden_TD, weight_VD, bias_V)
    shapes = [(len(head.hidden_TD), len(head.weight_VD)) for head in (policy, reference)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"positions and vocabulary of the policy {shapes[0]} and the reference {shapes[1]} differ")
    hidden_TD = policy.hidden_TD
    precise = torch.promote_types(hidden_TD.dtype, torch.float32)
    rows, columns = slabs.blocks(hidden_TD, policy.weight_VD)
    spaces = [slabs.workspace(head.hidden_TD, rows, columns) for head in (policy, reference)]
    kl_T = hidden_TD.new_empty(len(hidden_TD), dtype=precise)
    with torch.autocast(hidden_TD.device.type, enabled=False):
        for rows_R in slabs.spans(len(hidden_TD), rows):
            lowest_R, nothing_R = torch.full_like(kl_T[rows_R], -torch.inf), torch.zeros_like(kl_T[rows_R])
            seen = _Seen(lowest_R, nothing_R, lowest_R, nothing_R, nothing_R)
            for slab in slabs.spans(len(policy.weight_VD), columns):
                both = zip((policy, reference), spaces, strict=True)
                seen = _absorb(seen, *(_logits(head, rows_R, slab, space) for head, space in both))
            log_sums_R = seen.sum_R.log() - seen.other_sum_R.log()
            kl_T[rows_R] = seen.gap_R / seen.sum_R - ((seen.max_R - seen.other_max_R) + log_sums_R)
    return kl_T.clamp_(min=0)  # rounding may leave a KL of nothing just below it


def _absorb(seen: _Seen, logit_RS: Tensor, other_RS: Tensor) -> _Seen:
    """One slab more; both blocks are written over."""
    difference_RS = logit_RS - other_RS
    max_R, sum_R, decay_R = _grow(seen.max_R, seen.sum_R, logit_RS)
    other_max_R, other_sum_R, _ = _grow(seen.other_max_R, seen.other_sum_R, other_RS)
    # the logits are exp(z - max) by now
    gap_R = seen.gap_R * decay_R + difference_RS.mul_(logit_RS).sum(1)
    return _Seen(max_R, sum_R, other_max_R, other_sum_R, gap_R)


def _logits(head: Head, rows_R: slice, slab: slice, space: Tensor | None) -> Tensor:
    hidden_TD, weight_VD, bias_V, scale, softcap = head
    operand = slabs.operand_dtype(hidden_TD)
    bias_S, no_target = None if bias_V is None else bias_V[slab], torch.empty(0)
    hidden_RD, weight_SD = hidden_TD[rows_R].to(operand), weight_VD[slab].to(operand)
    shape = len(hidden_RD), len(weight_SD)
    space_RS = None if space is None else space[: math.prod(shape)].view(shape)
    return logits(Block(hidden_RD, weight_SD, bias_S, scale, softcap, no_target, space_RS))


def _grow(max_R: Tensor, sum_R: Tensor, logit_RS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(new max, new sum, exp(old max - new max)); the logits become exp(z - new max)."""
    new_max_R = torch.maximum(max_R, logit_RS.amax(1))
    decay_R = torch.exp(max_R - new_max_R)
    return new_max_R, sum_R * decay_R + logit_RS.sub_(new_max_R[:, None]).mul_(LOG2_E).exp2_().sum(1), decay_R
