"""The input and result of the checks, and functions that take parts of a batch.

Letters: B pairs, N = 2B sequences, T packed tokens.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from lightning import Trainer
from torch import Tensor

from lit_safe.training.memory_plan import MemoryPlan
from lit_safe.training.module import PreferenceAlignment
from lit_safe.training.score_model import ScoreModel
from lit_safe.types import Annotation, PackedBatch, PackedSequences, Pair

Module = TypeVar("Module")


class Patient(NamedTuple, Generic[Module]):
    """The input of the checks: a module with loaded models, one batch without fillers, and facts about the data.

    ``stop_ids`` are the tokens that may end a response. ``tolerance`` is the largest difference in nats that counts as
    rounding. ``plan`` is the memory of a training step. ``trainer``, if there is one, gives the run's precision and
    callbacks.
    """

    module: Module
    batch: PackedBatch
    stop_ids: frozenset[int]
    tolerance: float
    plan: MemoryPlan
    data: Any = None
    trainer: Trainer | None = None


Preference = Patient[PreferenceAlignment]
"""A policy and its objective."""

Scores = Patient[ScoreModel]
"""A score model."""


class Finding(NamedTuple):
    """The result of a check: whether it passed, and what it found, in a sentence."""

    check: str
    passed: bool
    seen: str


def take(sequences: PackedSequences, which: Sequence[int]) -> PackedSequences:
    """The sequences with the given indices, in this order."""
    bounds = sequences.cu_seqlens.tolist()
    spans = [slice(bounds[i], bounds[i + 1]) for i in which]
    lengths = [0, *(span.stop - span.start for span in spans)]
    ids, target, position = (torch.cat([tensor[span] for span in spans]) for tensor in sequences[:3])
    return PackedSequences(ids, target, position, torch.tensor(lengths).cumsum(0).to(sequences.cu_seqlens))


def beside_longer(sequences: PackedSequences, ends: PackedSequences) -> PackedSequences:
    """``ends`` and, after them, the longest of ``sequences``. A text of the batch is not too long for the model."""
    neighbour = take(sequences, [int(sequences.cu_seqlens.diff().argmax())])
    return PackedSequences(
        torch.cat([ends.input_ids, neighbour.input_ids]),
        torch.cat([ends.target, neighbour.target]),
        torch.cat([ends.position, neighbour.position]),
        torch.cat([ends.cu_seqlens, ends.cu_seqlens[-1:] + neighbour.cu_seqlens[-1:]]),
    )


def take_ends(sequences: PackedSequences, size: int) -> PackedSequences:
    """The last ``size`` tokens of each sequence (or the whole sequence, if it is shorter), as new sequences."""
    length_N = sequences.cu_seqlens.diff().clamp(max=size).tolist()
    kept = torch.cat(
        [torch.arange(end - n, end) for end, n in zip(sequences.cu_seqlens[1:].tolist(), length_N, strict=True)]
    )
    kept = kept.to(sequences.input_ids.device)
    return PackedSequences(
        sequences.input_ids[kept],
        sequences.target[kept],
        torch.cat([torch.arange(length) for length in length_N]).to(sequences.position),
        torch.tensor([0, *length_N]).cumsum(0).to(sequences.cu_seqlens),
    )


def take_pairs(batch: PackedBatch, which: Sequence[int]) -> PackedBatch:
    """The pairs with the given indices. ``pairs_in_step`` is unchanged, so parts of a step's loss still add up."""
    rows = torch.tensor(which, device=batch.present.device)

    def rows_of(pair: Pair) -> Pair:
        return Pair(pair.chosen[rows], pair.rejected[rows])

    label = Annotation(
        rows_of(batch.label.reward),
        rows_of(batch.label.cost),
        None if batch.label.draw is None else batch.label.draw[rows],
    )
    return PackedBatch(
        take(batch.sequences, [side for i in which for side in (2 * i, 2 * i + 1)]),
        label,
        batch.pair_id[rows],
        batch.prompt_id[rows],
        rows_of(batch.response_length),
        batch.present[rows],
        batch.pairs_in_step,
        None if batch.reference_logp is None else rows_of(batch.reference_logp),
    )


def gradient(module: PreferenceAlignment | ScoreModel, batches: Sequence[PackedBatch]) -> Tensor:
    """The gradient of a step over ``batches``, flattened, on the CPU. The module's own gradients remain empty."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    total = [torch.zeros_like(p, device="cpu", dtype=torch.float32) for p in parameters]
    with module.step_quantities(batches) if isinstance(module, PreferenceAlignment) else nullcontext():
        for batch in batches:
            with torch.enable_grad():
                share = module.loss_share(batch)
            with torch.autocast(module.device.type, enabled=False):
                grads = torch.autograd.grad(share, parameters, allow_unused=True)
            for sum_, grad in zip(total, grads, strict=True):
                if grad is not None:
                    sum_ += grad.detach().float().cpu()
    return torch.cat([g.flatten() for g in total])
