"""Triton kernels of the fused backend, without atomics or locks: every number is written once, in a fixed order.

Letters: T positions, R rows of one block of them, D hidden width, V vocabulary, S columns of one slab of it. The form
of a head (scale, softcap) is a compile-time constant, because a float argument would cause fp64 arithmetic. Row offsets
are int64, because T * V exceeds 2**31 at real sizes.
"""

# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _scaled(z, bias, columns, V, SCALE: tl.constexpr, HAS_BIAS: tl.constexpr):
    """Columns of the vocabulary as scale * (z + bias)."""
    if HAS_BIAS:
        z += tl.load(bias + columns, mask=columns < V, other=0.0).to(tl.float32)
    if SCALE != 1.0:
        z *= SCALE
    return z


@triton.jit
def _capped(z, SOFTCAP: tl.constexpr):
    """The softcap of z, a non-decreasing function."""
    if SOFTCAP is not None:
        # tanh(x) = 2 sigmoid(2x) - 1; the interpreter has no libdevice tanh
        z = SOFTCAP * (2.0 * tl.sigmoid(2.0 * (z / SOFTCAP)) - 1.0)
    return z


@triton.jit
def _formed(z, bias, columns, V, SCALE: tl.constexpr, SOFTCAP: tl.constexpr, HAS_BIAS: tl.constexpr):
    """softcap(scale * (z + bias)) for columns of the vocabulary."""
    return _capped(_scaled(z, bias, columns, V, SCALE, HAS_BIAS), SOFTCAP)


@triton.jit(do_not_specialize=["T", "TILES", "SPLITS"])  # they change from step to step
def stream_kernel(
    hidden,  # descriptor of [T, D]
    weight,  # descriptor of [V, D]
    bias,
    target,  # [T] int32
    max_out,  # [SPLITS, T], largest logit of the split without the target
    sum_out,  # [SPLITS, T], sum of exp(z - max) over the split without the target
    target_out,  # [SPLITS, T], the target's logit if the split holds it
    T,
    TILES,  # tiles of the vocabulary per split
    SPLITS,  # parts of the vocabulary
    V: tl.constexpr,
    D: tl.constexpr,
    SCALE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,  # row blocks that go through the vocabulary together; 0: all of them
    UPCAST: tl.constexpr,  # for the interpreter, which multiplies the raw bits of bf16
):
    """Product with the head and running log-sum-exp, one block of rows and one split of the vocabulary at a time.

    Every program takes jobs until none is left: those whose number, modulo the number of programs, is its own.
    """
    row_blocks = tl.cdiv(T, BLOCK_T)
    for job in range(tl.program_id(0), row_blocks * SPLITS, tl.num_programs(0)):
        # neighbouring programs share a split, so they read its part of the head from L2
        first_block = 0
        group = row_blocks
        place = job
        if GROUP:  # few row blocks at a time, so that their hidden states stay in L2 as well
            first_block = job // (GROUP * SPLITS) * GROUP
            place = job % (GROUP * SPLITS)
            group = tl.minimum(GROUP, row_blocks - first_block)
        block = first_block + place % group
        split = place // group
        rows = block * BLOCK_T + tl.arange(0, BLOCK_T)
        goal = tl.load(target + rows, mask=rows < T, other=-1)
        top = tl.full([BLOCK_T], -float("inf"), tl.float32)
        total = tl.zeros([BLOCK_T], tl.float32)
        picked = tl.full([BLOCK_T], -float("inf"), tl.float32)
        for tile in range(TILES):
            first = (split * TILES + tile) * BLOCK_V
            if first < V:
                z = tl.zeros([BLOCK_T, BLOCK_V], tl.float32)
                for k in range(0, D, BLOCK_D):
                    h = hidden.load([block * BLOCK_T, k])
                    w = weight.load([first, k])
                    if UPCAST:
                        h = h.to(tl.float32)
                        w = w.to(tl.float32)
                    z = tl.dot(h, w.T, z, input_precision="ieee")
                columns = first + tl.arange(0, BLOCK_V)
                z = _formed(z, bias, columns[None, :], V, SCALE, SOFTCAP, HAS_BIAS)
                at_goal = columns[None, :] == goal[:, None]
                picked = tl.maximum(picked, tl.max(tl.where(at_goal, z, -float("inf")), 1))
                z = tl.where(at_goal | (columns[None, :] >= V), -float("inf"), z)
                new_top = tl.maximum(top, tl.max(z, 1))
                shift = tl.where(new_top == -float("inf"), 0.0, new_top)
                total = total * tl.exp2((top - shift) * LOG2E) + tl.sum(tl.exp2((z - shift[:, None]) * LOG2E), 1)
                top = new_top
        out = split.to(tl.int64) * T + rows
        tl.store(max_out + out, top, mask=rows < T)
        tl.store(sum_out + out, total, mask=rows < T)
        tl.store(target_out + out, picked, mask=rows < T)


@triton.jit
def absorb_kernel(
    product,  # [R, S] fp32, h W^T of the slab
    bias,
    target,  # [R] int32, column of the target in the slab; anything outside it elsewhere
    max_state,  # [R], largest logit so far without the target
    sum_state,  # [R], sum of exp(z - max) so far without the target
    target_state,  # [R], the target's logit once its slab is read
    decay_out,  # [R], exp(old max - new max)
    exp_out,  # [R, S], exp(z - new max) times the softcap's derivative, 0 at the target
    S,
    stride,
    SCALE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Adds one slab to the running log-sum-exp of a row, and writes its exponentials for the product with the head."""
    row = tl.program_id(0).to(tl.int64)
    goal = tl.load(target + row)
    old_top = tl.load(max_state + row)
    top = tl.full([BLOCK_S], -float("inf"), tl.float32)
    for first in range(0, S, BLOCK_S):
        columns = first + tl.arange(0, BLOCK_S)
        z = tl.load(product + row * stride + columns, mask=columns < S, other=-float("inf"))
        z = _scaled(z, bias, columns, S, SCALE, HAS_BIAS)
        top = tl.maximum(top, tl.where((columns == goal) | (columns >= S), -float("inf"), z))
    # one softcap per row, not per column; without columns it gives -SOFTCAP, a lower bound of all logits
    new_top = tl.maximum(old_top, _capped(tl.max(top, 0), SOFTCAP))
    shift = tl.where(new_top == -float("inf"), 0.0, new_top)
    total = tl.zeros([BLOCK_S], tl.float32)
    for first in range(0, S, BLOCK_S):
        columns = first + tl.arange(0, BLOCK_S)
        z = tl.load(product + row * stride + columns, mask=columns < S, other=-float("inf"))
        z = _formed(z, bias, columns, S, SCALE, SOFTCAP, HAS_BIAS)
        e = tl.where((columns == goal) | (columns >= S), 0.0, tl.exp2((z - shift) * LOG2E))
        total += e
        if SOFTCAP is not None:
            e *= 1.0 - (z / SOFTCAP) * (z / SOFTCAP)
        tl.store(exp_out + row * stride + columns, e.to(exp_out.dtype.element_ty), mask=columns < S)
    decay = tl.exp2((old_top - shift) * LOG2E)
    tl.store(decay_out + row, decay)
    tl.store(sum_state + row, tl.load(sum_state + row) * decay + tl.sum(total, 0))
    tl.store(max_state + row, new_top)
    if (goal >= 0) & (goal < S):
        z = tl.load(product + row * stride + goal)
        tl.store(target_state + row, _formed(z, bias, goal, S, SCALE, SOFTCAP, HAS_BIAS))


@triton.jit
def residual_kernel(
    product,  # [R, S] fp32, h W^T of the slab
    bias,
    target,  # [R] int32, column of the target in the slab; anything outside it elsewhere
    factor,  # [R], minus the row's incoming gradient times the scale
    miss,  # [R], p - 1 of the target
    shift,  # [R]
    log_sum,  # [R], p = exp((z - shift) - log_sum)
    residual_out,  # [R, S], (p - onehot(target)) times the softcap's derivative and the factor
    S,
    stride,
    SCALE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Computes the gradient of a product."""
    blocks = tl.cdiv(S, BLOCK_S)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    columns = (tl.program_id(0) % blocks) * BLOCK_S + tl.arange(0, BLOCK_S)
    z = tl.load(product + row * stride + columns, mask=columns < S, other=0.0)
    z = _formed(z, bias, columns, S, SCALE, SOFTCAP, HAS_BIAS)
    p = tl.exp2(((z - tl.load(shift + row)) - tl.load(log_sum + row)) * LOG2E)
    p = tl.where(columns == tl.load(target + row), tl.load(miss + row), p) * tl.load(factor + row)
    if SOFTCAP is not None:
        p *= 1.0 - (z / SOFTCAP) * (z / SOFTCAP)
    tl.store(residual_out + row * stride + columns, p.to(residual_out.dtype.element_ty), mask=columns < S)
