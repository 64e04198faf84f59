"""Log-probs with a head whose vocabulary is sharded over the ranks of a process group.

Letters: P ranks, T positions, D hidden width, V the columns of the vocabulary of one rank.
"""

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ops.sequence_logratio import chunked, slabs
from ops.sequence_logratio.checks import check_dtypes, check_head, check_targets
from ops.sequence_logratio.operator import Normalized, Problem
from ops.sequence_logratio.reference import IGNORE
from ops.sequence_logratio.slabs import Running


def vocab_parallel_token_logp(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    target_T: Tensor,
    *,
    first_id: int,
    group: dist.ProcessGroup,
    bias_V: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    sum_hidden_grad: bool = True,
) -> Tensor:
    """[T] log-probs, the same on every rank, equal to those of ``token_logp`` with the whole head.

    Three numbers per token (largest logit, sum of exponentials, the target's logit) are sent in one all-gather and
    merged in the order of the ranks, so that every rank has bit-identical results.

    Args:
        hidden_TD: Hidden states, the same on every rank.
        weight_VD: This rank's rows of the head.
        target_T: int64 ids of the whole vocabulary, the same on every rank; -100 gives 0 and no gradient.
        first_id: Id of the first row of ``weight_VD``.
        group: The ranks that hold the head.
        bias_V: This rank's part of the bias.
        scale: As for ``token_logp``.
        softcap: As for ``token_logp``.
        sum_hidden_grad: Sum the gradient of the hidden states over the ranks, in fp32. Set it to False if the parallel
            layer before the head does that.

    Raises:
        ValueError: On invalid shapes or dtypes, and on a target that no rank holds (checked only on a CPU).
    """
    check_head(hidden_TD, weight_VD, bias_V)
    check_dtypes(hidden_TD, weight_VD)
    check_targets(hidden_TD, target_T)
    logp_T: Tensor = _VocabParallel.apply(
        hidden_TD, weight_VD, target_T, bias_V, float(scale), softcap, first_id, group, sum_hidden_grad
    )
    return logp_T


class _VocabParallel(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        target_T: Tensor,
        bias_V: Tensor | None,
        scale: float,
        softcap: float | None,
        first_id: int,
        group: dist.ProcessGroup,
        sum_hidden_grad: bool,
    ) -> Tensor:
        problem = Problem(hidden_TD, weight_VD, target_T - first_id, bias_V, scale, softcap)
        with torch.autocast(hidden_TD.device.type, enabled=False):
            local_3T = torch.stack(slabs.accumulate(problem, 0, chunked.absorb)[0])
        gathered = [torch.empty_like(local_3T) for _ in range(dist.get_world_size(group))]
        dist.all_gather(gathered, local_3T, group=group)
        merged = slabs.merge(Running(*torch.stack(gathered, dim=1)))
        nowhere_T = (target_T != IGNORE) & (merged.target_logit_T == -torch.inf)
        if target_T.device.type == "cpu" and nowhere_T.any():
            raise ValueError(f"target {int(target_T[nowhere_T][0])} is neither {IGNORE} nor an id that a rank holds")
        normalized = slabs.normalize(merged, target_T)
        ctx.save_for_backward(hidden_TD, weight_VD, target_T, bias_V, *normalized)
        ctx.constants = scale, softcap, first_id, group, sum_hidden_grad
        return normalized.logp_T

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_T: Tensor) -> tuple[Tensor | None, ...]:
        hidden_TD, weight_VD, target_T, bias_V, *normalized = ctx.saved_tensors
        scale, softcap, first_id, group, sum_hidden_grad = ctx.constants
        needs = ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[3]
        problem = Problem(hidden_TD, weight_VD, target_T - first_id, bias_V, scale, softcap)
        scored_T = grad_T.where(target_T != IGNORE, 0).contiguous()
        with torch.autocast(hidden_TD.device.type, enabled=False):
            hidden, weight, bias = _gradients(problem, scored_T, Normalized(*normalized), needs)
        if hidden is not None and sum_hidden_grad:
            dist.all_reduce(hidden, group=group)
        hidden = None if hidden is None else hidden.to(hidden_TD.dtype)
        return hidden, weight, None, bias, None, None, None, None, None


_gradients = partial(slabs.backward, residual=chunked.residual)
