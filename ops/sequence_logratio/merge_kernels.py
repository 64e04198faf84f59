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


@triton.jit
def stats_kernel(
    product,  # [R, S] fp32, h W^T of the slab, of the policy
    other,  # the same of the reference
    bias,
    other_bias,
    target,  # [R] int32, column of the target in the slab; anything outside it elsewhere
    max_state,  # [R], largest logit of the policy so far without the target
    sum_state,  # [R], sum of exp(z') so far without the target, z' = z - max
    target_state,  # [R], the target's logit once its slab is read
    other_max_state,
    other_sum_state,
    other_target_state,
    level_state,  # [R], sum of exp(z') z' so far without the target
    gap_state,  # [R], sum of exp(z') (z' - u') so far without the target, u' = u - its max
    S,
    stride,
    other_stride,
    SCALE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    OTHER_SCALE: tl.constexpr,
    OTHER_SOFTCAP: tl.constexpr,
    OTHER_HAS_BIAS: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Adds one slab of both models to the sums of a row. It reads each logit once and writes eight numbers."""
    row = tl.program_id(0).to(tl.int64)
    goal = tl.load(target + row)
    top, other_top = tl.load(max_state + row), tl.load(other_max_state + row)
    total, other_total = tl.load(sum_state + row), tl.load(other_sum_state + row)
    level, gap = tl.load(level_state + row), tl.load(gap_state + row)
    shift = tl.where(top == -float("inf"), 0.0, top)
    other_shift = tl.where(other_top == -float("inf"), 0.0, other_top)
    for first in range(0, S, BLOCK_S):
        columns = first + tl.arange(0, BLOCK_S)
        out = (columns == goal) | (columns >= S)
        z = tl.load(product + row * stride + columns, mask=columns < S, other=0.0)
        u = tl.load(other + row * other_stride + columns, mask=columns < S, other=0.0)
        z = _formed(z, bias, columns, S, SCALE, SOFTCAP, HAS_BIAS)
        u = _formed(u, other_bias, columns, S, OTHER_SCALE, OTHER_SOFTCAP, OTHER_HAS_BIAS)
        new_top = tl.maximum(top, tl.max(tl.where(out, -float("inf"), z), 0))
        new_other = tl.maximum(other_top, tl.max(tl.where(out, -float("inf"), u), 0))
        new_shift = tl.where(new_top == -float("inf"), 0.0, new_top)
        new_other_shift = tl.where(new_other == -float("inf"), 0.0, new_other)
        decay = tl.exp2((top - new_shift) * LOG2E)
        # sums relative to the old maxima become sums relative to the new ones
        rise = new_shift - shift
        level = (level - total * rise) * decay
        gap = (gap - total * (rise - (new_other_shift - other_shift))) * decay
        z = tl.where(out, 0.0, z - new_shift)
        u = tl.where(out, 0.0, u - new_other_shift)
        e = tl.where(out, 0.0, tl.exp2(z * LOG2E))
        total = total * decay + tl.sum(e, 0)
        other_decay = tl.exp2((other_top - new_other_shift) * LOG2E)
        other_total = other_total * other_decay + tl.sum(tl.where(out, 0.0, tl.exp2(u * LOG2E)), 0)
        level += tl.sum(e * z, 0)
        gap += tl.sum(e * (z - u), 0)
        top, other_top, shift, other_shift = new_top, new_other, new_shift, new_other_shift
    tl.store(max_state + row, top)
    tl.store(sum_state + row, total)
    tl.store(other_max_state + row, other_top)
    tl.store(other_sum_state + row, other_total)
    tl.store(level_state + row, level)
    tl.store(gap_state + row, gap)
    if (goal >= 0) & (goal < S):
        z = tl.load(product + row * stride + goal)
        u = tl.load(other + row * other_stride + goal)
        tl.store(target_state + row, _formed(z, bias, goal, S, SCALE, SOFTCAP, HAS_BIAS))
        tl.store(other_target_state + row, _formed(u, other_bias, goal, S, OTHER_SCALE, OTHER_SOFTCAP, OTHER_HAS_BIAS))
