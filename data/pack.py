"""Packs tokenised rows into the batches of ``lit_safe.types``: sequences end to end, targets shifted, no padding.

A filler row is the shortest sequence that a model accepts (two tokens, one scored). Its labels are zeros, it is not
``present``, and no result includes it.
"""

from __future__ import annotations

import numpy as np
import torch

from data.tokens import Ids, Int64s, Ragged, TokenisedPairs, TokenisedRows
from lit_safe.hashing import uniform
from lit_safe.sequences import pack_sequences
from lit_safe.types import Annotation, PackedBatch, PackedSequences, Pair, SequenceBatch

FILLER: tuple[Ids, Ids, Ids] = (np.zeros(1, np.int32), np.zeros(1, np.int32), np.zeros(0, np.int32))


def pack_pairs(pairs: TokenisedPairs, index: Int64s, fillers: int, pairs_in_step: int, seed: int) -> PackedBatch:
    """Pack the pairs at ``index``, followed by ``fillers`` filler rows. B is the sum of both.

    Args:
        pairs: All pairs.
        index: Indices of the pairs to pack.
        fillers: Number of filler rows, for a rank that has fewer pairs than another.
        pairs_in_step: Number of pairs of the whole step, without fillers.
        seed: Seed of the random draw for sampled labels.
    """
    sides = (pairs.chosen, pairs.chosen_unscored), (pairs.rejected, pairs.rejected_unscored)
    parts = [(pairs.prompt.at(i), side.at(i), unscored.at(i)) for i in map(int, index) for side, unscored in sides]
    parts += [FILLER] * (2 * fillers)
    label = annotation(pairs, index, fillers)
    # rounded down: rounding a number below 1 to the nearest float32 may give 1
    draw = np.array([int(uniform("draw", seed, int(i)) * 2**24) / 2**24 for i in pairs.pair_id[index]], np.float32)
    return PackedBatch(
        sequences=pack_sequences(*zip(*parts, strict=True)),
        label=label._replace(draw=_filled(draw, fillers)),
        pair_id=_filled(pairs.pair_id[index], fillers),
        prompt_id=_filled(pairs.prompt_id[index], fillers),
        response_length=Pair(*(_filled(scored_sizes(*side, index), fillers) for side in sides)),
        present=torch.arange(len(index) + fillers) < len(index),
        pairs_in_step=torch.tensor(pairs_in_step),
    )


def annotation(pairs: TokenisedPairs, index: Int64s, fillers: int = 0) -> Annotation:
    """The labels of the pairs at ``index``, followed by zeros for ``fillers`` rows, without random draws."""
    cost = _filled(pairs.cost[index], fillers)
    cost = cost[..., 0] if cost.shape[-1] == 1 else cost  # with one constraint, the shape is [B]
    reward = _filled(pairs.reward[index], fillers)
    return Annotation(reward=Pair(reward[:, 0], reward[:, 1]), cost=Pair(cost[:, 0], cost[:, 1]))


def pack_rows(rows: TokenisedRows, index: Int64s, fillers: int, tokens_in_step: int) -> SequenceBatch:
    """Pack the single sequences at ``index``, followed by ``fillers`` filler rows. N is the sum of both."""
    lists = rows.prompt, rows.response, rows.response_unscored
    parts = [(lists[0].at(i), lists[1].at(i), lists[2].at(i)) for i in map(int, index)] + [FILLER] * fillers
    return batch_of(rows, index, fillers, pack_sequences(*zip(*parts, strict=True)), tokens_in_step)


def batch_of(
    rows: TokenisedRows, index: Int64s, fillers: int, sequences: PackedSequences, tokens_in_step: int
) -> SequenceBatch:
    """The batch of ``sequences``: those of the rows at ``index``, followed by ``fillers`` filler rows."""
    return SequenceBatch(
        sequences=sequences,
        row_id=_filled(rows.row_id[index], fillers),
        prompt_id=_filled(rows.prompt_id[index], fillers),
        present=torch.arange(len(index) + fillers) < len(index),
        tokens_in_step=torch.tensor(tokens_in_step),
    )


def scored_sizes(responses: Ragged, unscored: Ragged, index: Int64s) -> Int64s:
    """Number of scored tokens of the responses at ``index``."""
    sizes = responses.offsets[index + 1] - responses.offsets[index]
    if not len(unscored.values):
        return sizes
    places = [unscored.at(i) for i in map(int, index)]
    return sizes - np.array([int(place[1::2].sum() - place[::2].sum()) for place in places], np.int64)


def _filled(values: np.ndarray, fillers: int) -> torch.Tensor:
    """``values`` followed by zeros for the filler rows."""
    return torch.from_numpy(np.concatenate([values, np.zeros((fillers, *values.shape[1:]), values.dtype)]))
