"""How packed sequences are laid into the rows that a decoder reads.

Letters: N sequences, T packed tokens, K rows of the decoder's input, S longest of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from lit_safe.types import IGNORE, LaidOut, PackedSequences

Layout = Literal["padded", "packed", "shared"]
LayoutChoice = Literal["auto", "padded", "packed", "shared"]
"""``auto`` is ``shared`` where the model can compute it, and ``padded`` elsewhere."""

MOST = 4  # responses in a row of the layout `shared`; attention takes time with the square of a row's length


class Rows(NamedTuple):
    """The decoder's input on the CPU, and the place in it of every packed token."""

    ids_KS: Tensor
    position_KS: Tensor
    row_T: Tensor
    column_T: Tensor
    branch_KS: Tensor | None = None  # 0 at prompts, n at the n-th response after it, -1 at padding; None: no branches


def lay_out(sequences: PackedSequences, layout: Layout) -> LaidOut:
    """The rows that a model reads, on the device of ``sequences``. Sequences elsewhere than on the CPU are read back.

    Args:
        sequences: N sequences, at least one.
        layout: Name of the layout.
    """
    host = PackedSequences(*(part.cpu() for part in sequences[:4]))
    rows = LAYOUTS[layout](host)
    scored_T = host.target != IGNORE
    before_T1 = nn.functional.pad(scored_T.cumsum(0), (1, 0))
    laid = LaidOut(
        layout,
        rows.ids_KS,
        rows.position_KS,
        rows.branch_KS,
        rows.row_T,
        rows.column_T,
        rows.row_T[scored_T],
        rows.column_T[scored_T],
        host.target[scored_T],
        before_T1[host.cu_seqlens.long()].to(torch.int32),
        int(host.cu_seqlens.diff().max()),
    )
    device = sequences.input_ids.device
    if device.type == "cpu":
        return laid
    return LaidOut._make(part.to(device) if isinstance(part, Tensor) else part for part in laid)


def spread(value_TD: Tensor, laid: LaidOut) -> Tensor:
    """[K, S, D] values at the places of their tokens, zeros elsewhere."""
    value_KSD = value_TD.new_zeros(*laid.ids_KS.shape, value_TD.shape[-1])
    value_KSD[laid.row_T, laid.column_T] = value_TD
    return value_KSD


def padded(sequences: PackedSequences) -> Rows:
    """Each sequence as a row, padded on the right. Positions continue, so that no library takes a row for several.

    A token of a causal model sees no token after its own, so the padding needs no mask.
    """
    length_N = sequences.cu_seqlens.diff().long()
    row_T = torch.repeat_interleave(torch.arange(len(length_N)), length_N)
    column_T = torch.arange(len(row_T)) - sequences.cu_seqlens[:-1].long()[row_T]
    ids_KS = length_N.new_zeros(len(length_N), int(length_N.max()))
    ids_KS[row_T, column_T] = sequences.input_ids
    return Rows(ids_KS, torch.arange(ids_KS.shape[1]).repeat(len(ids_KS), 1), row_T, column_T)


def packed(sequences: PackedSequences) -> Rows:
    """All sequences as one row. The library separates them if positions restart and no mask is given."""
    column_T = torch.arange(len(sequences.input_ids))
    return Rows(sequences.input_ids[None], sequences.position[None], torch.zeros_like(column_T), column_T)


def shared(sequences: PackedSequences) -> Rows:
    """Each prompt before the responses of the consecutive sequences that begin with it, padded on the right.

    A prompt ends where the first token is scored. A row has at most MOST responses, and fewer if the rows of the batch
    then have fewer positions: padding the others to one long row can take more than repeating its prompt. No content of
    a response decides where anything stands. Where no row has two responses, the rows are those of ``padded``, which
    need no mask.
    """
    ids, scored = sequences.input_ids.tolist(), (sequences.target != IGNORE).tolist()
    spans = []
    for start, end in itertools.pairwise(sequences.cu_seqlens.tolist()):
        first = next((t for t in range(start, end) if scored[t]), end - 1)
        spans.append((start, first + 1, end))
    prompts = [ids[start:middle] for start, middle, _ in spans]
    begins = [True, *(one != other for one, other in itertools.pairwise(prompts))]
    most = min(range(MOST, 0, -1), key=lambda most: _positions(spans, begins, most))  # of equals the largest
    if most == 1 or all(begins):
        return padded(sequences)
    row_T, column_T, branch_T = [], [], []
    row, width, branch = -1, 0, 0
    for (start, middle, end), new in zip(spans, begins, strict=True):
        if new or branch == most:
            row, width, branch = row + 1, middle - start, 0
        branch += 1
        size, rest = middle - start, end - middle
        row_T += [row] * (size + rest)
        column_T += [*range(size), *range(width, width + rest)]
        branch_T += [0] * size + [branch] * rest
        width += rest
    places = torch.tensor(row_T), torch.tensor(column_T)
    ids_KS = torch.zeros(row + 1, max(column_T) + 1, dtype=torch.int64)
    position_KS, branch_KS = ids_KS.clone(), ids_KS - 1
    ids_KS[places] = sequences.input_ids
    position_KS[places] = sequences.position
    branch_KS[places] = torch.tensor(branch_T)
    return Rows(ids_KS, position_KS, *places, branch_KS)


def _positions(spans: Sequence[tuple[int, int, int]], begins: Sequence[bool], most: int) -> int:
    """Positions of all rows, padding included, with at most ``most`` responses in a row.

    Args:
        spans: Start of each sequence, end of its prompt, and its end.
        begins: Whether a sequence has another prompt than the one before it.
        most: The bound.
    """
    widths, branch = [0], 0
    for (start, middle, end), new in zip(spans, begins, strict=True):
        if new or branch == most:
            widths.append(middle - start)
            branch = 0
        branch += 1
        widths[-1] += end - middle
    return (len(widths) - 1) * max(widths)


LAYOUTS = {"padded": padded, "packed": packed, "shared": shared}
