"""The labelled responses of the dual split, with the policy's log-ratio of each.

Letters: B pairs, N = 2B responses of a batch, n responses of the split, C constraints.
"""

from typing import NamedTuple

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from lit_safe.constraint.costs import HeldOut
from lit_safe.execution.quiet import quiet
from lit_safe.execution.ranks import gather, rank_and_world
from lit_safe.hashing import hash64
from lit_safe.protocols.pair import HasPair
from lit_safe.types import PackedBatch


class LabelledRows(NamedTuple):
    """Log-ratios policy / reference [n] in nats, costs [n] or [n, C], both float64, and prompt ids [n]."""

    logratio_n: Tensor
    cost: Tensor
    prompt_n: Tensor


def labelled_rows(module: HasPair, data: HeldOut, purpose: str) -> LabelledRows:
    """Score all labelled responses of the dual split. All ranks get the same rows.

    Raises:
        ValueError: If there are no pairs, or a response has no finite cost. The message names its pair.
    """
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    with quiet(module, hash64(purpose, rank_and_world()[0])) as device:
        for batch in data.dual_pairs():
            parts.append(_rows(module, batch, device))
        if not parts:
            raise ValueError("the dual split has no pairs: add data")
        columns = [gather(torch.cat(part), device) for part in zip(*parts, strict=True)]
    logratio_n, cost, prompt_n, present_n = columns
    present_n = present_n.bool()  # gathered as numbers
    return LabelledRows(logratio_n[present_n], cost[present_n], prompt_n[present_n])


def _rows(module: HasPair, batch: PackedBatch, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-ratio [N] in nats, cost [N] or [N, C], prompt id [N] and presence [N] (0 or 1) of a batch's responses."""
    sequences = move_data_to_device(batch.sequences, device)
    policy_N = module.pair.policy_logp(sequences)
    reference = batch.reference_logp
    reference_N = module.pair.reference_logp(sequences) if reference is None else _interleave(*reference)
    present_N = batch.present.cpu().repeat_interleave(2)
    cost = _interleave(*batch.label.cost).cpu().double()
    unknown_N = present_N & ~cost.isfinite().reshape(len(cost), -1).all(-1)
    if unknown_N.any():
        pair = int(batch.pair_id[int(unknown_N.nonzero()[0]) // 2])
        raise ValueError(f"pair {pair} of the dual split has a response without a finite cost")
    logratio_N = policy_N.cpu().double() - reference_N.cpu().double()
    return logratio_N, cost, batch.prompt_id.cpu().repeat_interleave(2), present_N.long()


def _interleave(chosen: Tensor, rejected: Tensor) -> Tensor:
    """[N] or [N, C], in the order of a batch's sequences: chosen and rejected alternate."""
    return torch.stack((chosen, rejected), dim=1).flatten(0, 1)
