"""How packed sequences are laid into the rows that a decoder reads.

Letters: N sequences, T packed tokens, K rows of the decoder's input, S longest of them.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lit_safe.types import PackedSequences

Layout = Literal["padded", "packed"]


class Rows(NamedTuple):
    """The decoder's input, and the place in it of every packed token."""

    ids_KS: Tensor
    position_KS: Tensor
    mask_KS: Tensor | None  # 1 at tokens, 0 at padding; None if a mask is not needed
    row_T: Tensor
    column_T: Tensor

    def spread(self, value_TD: Tensor) -> Tensor:
        """[K, S, D] values at the places of their tokens, zeros elsewhere."""
        value_KSD = value_TD.new_zeros(*self.ids_KS.shape, value_TD.shape[-1])
        value_KSD[self.row_T, self.column_T] = value_TD
        return value_KSD


def padded(sequences: PackedSequences) -> Rows:
    """Each sequence as a row, padded on the right. The mask is computed from lengths, never from a pad id."""
    length_N = sequences.cu_seqlens.diff().long()
    row_T = torch.repeat_interleave(torch.arange(len(length_N), device=length_N.device), length_N)
    column_T = torch.arange(len(row_T), device=length_N.device) - sequences.cu_seqlens[:-1].long()[row_T]
    ids_KS = length_N.new_zeros(len(length_N), int(length_N.max()))
    position_KS, mask_KS = ids_KS.clone(), ids_KS.clone()
    ids_KS[row_T, column_T] = sequences.input_ids
    position_KS[row_T, column_T] = sequences.position
    mask_KS[row_T, column_T] = 1
    return Rows(ids_KS, position_KS, mask_KS, row_T, column_T)


def packed(sequences: PackedSequences) -> Rows:
    """All sequences as one row. The library separates them if positions restart and no mask is given."""
    column_T = torch.arange(len(sequences.input_ids), device=sequences.input_ids.device)
    return Rows(sequences.input_ids[None], sequences.position[None], None, torch.zeros_like(column_T), column_T)
