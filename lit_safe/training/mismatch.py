"""The mean log-ratio of responses to other prompts than their own, which KTO compares log-ratios with.

Letters: B pairs, N = 2B sequences, T tokens.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor

from lit_safe.execution.ranks import merge
from lit_safe.protocols.pair import LogRatios
from lit_safe.types import IGNORE, PackedBatch, PackedSequences


class Mismatch:
    """Estimates the mean log-ratio over the responses of a step, each as an answer to another pair's prompt.

    It does not depend on how the step is divided into micro-batches. With several ranks, each combines its own pairs,
    and the mean is over all of them. Outside a step (in validation), it is that of the batch at hand.
    """

    def __init__(self) -> None:
        self._step: Tensor | None = None

    @contextmanager
    def of_step(self, pair: LogRatios, batches: Sequence[PackedBatch]) -> Iterator[None]:
        """Compute the mean over all micro-batches of a step and all ranks, for ``of`` within this context."""
        sums = _sums(pair, batches)
        self._step = _mean(merge(sums, sums.device))
        try:
            yield
        finally:
            self._step = None

    def of(self, pair: LogRatios, batch: PackedBatch) -> Tensor:
        """[] nats: the mean of the current step, or of ``batch`` outside a step. 0 if all pairs have one prompt."""
        return _mean(_sums(pair, [batch])) if self._step is None else self._step


def mismatched(batches: Sequence[PackedBatch]) -> list[PackedSequences]:
    """The responses of every pair, each after the prompt of the next pair with another prompt, batch by batch.

    A sequence is cut to the length of the longest one in ``batches``. Fillers, and pairs without another prompt in
    ``batches``, are left out.
    """
    rows = [(k, i) for k, batch in enumerate(batches) for i in batch.present.nonzero().flatten().tolist()]
    prompt = [int(batches[k].prompt_id[i]) for k, i in rows]
    bounds = [batch.sequences.cu_seqlens.tolist() for batch in batches]
    longest = max((end - start for each in bounds for start, end in pairwise(each)), default=0)

    def parts(row: tuple[int, int], side: int) -> tuple[Tensor, Tensor, int]:
        """Ids and targets of a sequence, and its first scored position."""
        k, i = row
        span = slice(bounds[k][2 * i + side], bounds[k][2 * i + side + 1])
        ids_t, target_t = batches[k].sequences.input_ids[span], batches[k].sequences.target[span]
        return ids_t, target_t, int((target_t != IGNORE).int().argmax())

    made: list[list[tuple[Tensor, Tensor]]] = [[] for _ in batches]
    for at, row in enumerate(rows):
        later = [(at + step) % len(rows) for step in range(1, len(rows))]
        other = next((j for j in later if prompt[j] != prompt[at]), None)
        if other is None:
            continue
        for side in (0, 1):
            theirs_ids, theirs_target, begin = parts(rows[other], side)
            own_ids, own_target, answer = parts(row, side)
            ids_t = torch.cat([theirs_ids[: begin + 1], own_ids[answer + 1 :]])[:longest]
            target_t = torch.cat([torch.full_like(theirs_target[:begin], IGNORE), own_target[answer:]])[:longest]
            made[row[0]].append((ids_t, target_t))
    return [_packed(sequences) for sequences in made if sequences]


def _packed(sequences: list[tuple[Tensor, Tensor]]) -> PackedSequences:
    ids, targets = zip(*sequences, strict=True)
    length_N = torch.tensor([0, *(len(one) for one in ids)])
    position = torch.cat([torch.arange(len(one), device=one.device) for one in ids])
    bounds = length_N.cumsum(0).to(ids[0].device, torch.int32)
    return PackedSequences(torch.cat(ids), torch.cat(targets), position, bounds)


@torch.no_grad()
def _sums(pair: LogRatios, batches: Sequence[PackedBatch]) -> Tensor:
    """[2] sum and number of the log-ratios of mismatched responses, float64 (float32 where there is none)."""
    device = batches[0].present.device
    total = torch.zeros(2, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
    for sequences in mismatched(batches):
        logp = pair.both_logp(sequences)
        total += torch.stack([(logp.policy - logp.reference).to(total).sum(), total.new_tensor(len(logp.policy))])
    return total


def _mean(sums: Tensor) -> Tensor:
    return (sums[0] / sums[1].clamp(min=1)).float()
