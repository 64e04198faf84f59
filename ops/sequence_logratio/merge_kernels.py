"""Triton kernels that gather a slab's logits into sums of their rows, and rescale sums. One program takes one row.

Letters: R rows of one block of positions, G of them with a gradient, D hidden width, S columns of one slab of the
vocabulary. As in kernels.py, nothing is atomic and row offsets are int64.
"""

# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from ops.sequence_logratio.kernels import LOG2E, _formed


@triton.jit
def merge_kernel(
    product,  # [R, S] fp32, h W^T of the slab
    bias,
    target,  # [R] int32, column of the target in the slab; anything outside it elsewhere
    max_state,  # [R], largest logit so far without the target
    sum_state,  # [R], sum of exp(z - max) so far without the target
    target_state,  # [R], the target's logit once its slab is read
    S,
    stride,
    SCALE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Adds one slab to the running log-sum-exp of a row. It reads each logit once and writes three numbers."""
    row = tl.program_id(0).to(tl.int64)
    goal = tl.load(target + row)
    top = tl.load(max_state + row)
    total = tl.load(sum_state + row)
    for first in range(0, S, BLOCK_S):
        columns = first + tl.arange(0, BLOCK_S)
        z = tl.load(product + row * stride + columns, mask=columns < S, other=-float("inf"))
        z = _formed(z, bias, columns, S, SCALE, SOFTCAP, HAS_BIAS)
        z = tl.where((columns == goal) | (columns >= S), -float("inf"), z)
        new_top = tl.maximum(top, tl.max(z, 0))
        shift = tl.where(new_top == -float("inf"), 0.0, new_top)
        total = total * tl.exp2((top - shift) * LOG2E) + tl.sum(tl.exp2((z - shift) * LOG2E), 0)
        top = new_top
    tl.store(max_state + row, top)
    tl.store(sum_state + row, total)
    if (goal >= 0) & (goal < S):
        z = tl.load(product + row * stride + goal)
        tl.store(target_state + row, _formed(z, bias, goal, S, SCALE, SOFTCAP, HAS_BIAS))


@triton.jit
def rescale_kernel(
    sums,  # [G, D] fp32
    decay,  # [G]
    D,
    stride,
    BLOCK_D: tl.constexpr,
):
    """Multiplies each row by its factor. A row whose factor is 1 is not read: most slabs raise few rows' maxima."""
    row = tl.program_id(0).to(tl.int64)
    factor = tl.load(decay + row)
    if factor != 1.0:
        for first in range(0, D, BLOCK_D):
            columns = first + tl.arange(0, BLOCK_D)
            place = sums + row * stride + columns
            tl.store(place, tl.load(place, mask=columns < D) * factor, mask=columns < D)
