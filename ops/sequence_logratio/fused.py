"""The Triton backend. The forward kernel writes only the log-sum-exp; a block of logits is never a torch tensor.

Letters: T positions, G of them with a gradient, R rows of one block of them, D hidden width, V vocabulary, S columns of
one slab of it.
"""

import functools
import importlib.util
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor

from ops.sequence_logratio import routes, schedule, slabs
from ops.sequence_logratio.operator import Normalized, Problem, register
from ops.sequence_logratio.schedule import Schedule, Tiling
from ops.sequence_logratio.slabs import Block, Running

if importlib.util.find_spec("triton"):
    import triton
    from triton.runtime.interpreter import InterpretedFunction
    from triton.tools.tensor_descriptor import TensorDescriptor

    from ops.sequence_logratio import kernels, merge_kernels

    HAVE_TRITON = True
    # Triton reads the interpreter flag when a kernel is decorated, not when it is called
    INTERPRETED = isinstance(kernels.stream_kernel, InterpretedFunction)
else:
    HAVE_TRITON = INTERPRETED = False


TILINGS = dict(schedule.TILINGS)
INTERPRETED_TILING = Tiling(32, 64, 16, 1, 1)
if INTERPRETED:
    TILINGS = dict.fromkeys(TILINGS, INTERPRETED_TILING)
# of the streaming kernel; None: one for each multiprocessor, which takes jobs until none is left
PROGRAMS: int | None = None
INTERPRETED_PROGRAMS = 4
# untuned: columns of a row per program; ROW_WARPS warps spill at 4096 if a bias is not aligned
ROW_COLUMNS = 2048
ROW_WARPS = 8
STATS_COLUMNS = 1024  # the same of two models; a bias that is not aligned spills at 2048


def unsupported(hidden_TD: Tensor, weight_VD: Tensor) -> str | None:
    """Requires Triton, a CUDA device with bf16 tensor cores, and rows that a tensor descriptor can address."""
    if not HAVE_TRITON:
        return "triton is not installed"
    if hidden_TD.shape[1] * hidden_TD.element_size() % 16:
        return f"a tensor descriptor needs rows of whole 16 bytes, not {hidden_TD.shape[1]} of {hidden_TD.dtype}"
    if INTERPRETED:
        runs = hidden_TD.device.type == "cpu" and hidden_TD.dtype != torch.float64
        return None if runs else "the interpreter runs on a CPU, up to fp32"
    if not hidden_TD.is_cuda:
        return f"its kernels need a CUDA device, not {hidden_TD.device.type}"
    if hidden_TD.dtype not in (torch.bfloat16, torch.float16):
        return f"its tensor-core products take bfloat16 or float16, not {hidden_TD.dtype}"
    if torch.cuda.get_device_capability(hidden_TD.device) < (8, 0):
        return "its kernels need compute capability 8.0"
    return launch_fault()


@functools.cache
def launch_fault() -> str | None:
    """Why Triton cannot launch a kernel on this machine, or None.

    Its launcher is a C extension, compiled on first use and then cached. This requires a C compiler and Python's
    headers once.
    """
    try:
        assert triton.runtime.driver.active.utils is not None
    except Exception as error:  # RuntimeError without a compiler, CalledProcessError if it fails, or ImportError
        first = str(error).partition("\n")[0] or repr(error)
        return f"Triton cannot build its launcher from C, which takes gcc or clang and Python's headers: {first}"
    return None


def tiling(bias_V: Tensor | None, softcap: float | None) -> Tiling:
    """The tiling from a static table. Nothing is tuned at run time, because T changes with every step."""
    return TILINGS["bare" if bias_V is None and softcap is None else "formed"]


def division(hidden_TD: Tensor, weight_VD: Tensor, tile: Tiling) -> Schedule:
    """How the streaming kernel divides this product among the multiprocessors of the device."""
    programs = PROGRAMS or INTERPRETED_PROGRAMS
    if PROGRAMS is None and hidden_TD.is_cuda:
        programs = torch.cuda.get_device_properties(hidden_TD.device).multi_processor_count
    return schedule.schedule(len(hidden_TD), len(weight_VD), tile, programs)


def _forward(problem: Problem, slope_rows: int) -> tuple[Normalized, Tensor]:
    tokens, width = problem.hidden_TD.shape
    if slope_rows == tokens:
        return slabs.forward(problem, slope_rows, _absorb, _rescale)
    slope_GD = problem.hidden_TD.new_empty((0, width), dtype=torch.float32)
    if not slope_rows:
        return _ungraded(problem), slope_GD
    # rows without a gradient need neither exponentials in memory nor a place in the blocks of the others
    graded, slope_GD = slabs.forward(problem.rows(slope_rows), slope_rows, _absorb, _rescale)
    rest = _ungraded(problem._replace(hidden_TD=problem.hidden_TD[slope_rows:], target_T=problem.target_T[slope_rows:]))
    return Normalized(*(torch.cat(parts) for parts in zip(graded, rest, strict=True))), slope_GD


def _ungraded(problem: Problem) -> Normalized:
    if routes.ungraded(problem.hidden_TD, problem.weight_VD) == "merge":
        return slabs.forward(problem, 0, _absorb)[0]
    return _streamed(problem)


def _streamed(problem: Problem) -> Normalized:
    hidden_TD, weight_VD, target_T, bias_V, scale, softcap = problem
    tile = tiling(bias_V, softcap)
    weight_VD = weight_VD.to(slabs.operand_dtype(hidden_TD))  # a copy only where the route is forced, or interpreted
    plan = division(hidden_TD, weight_VD, tile)
    parts_3ST = hidden_TD.new_empty((3, plan.splits, len(hidden_TD)), dtype=torch.float32)
    with _device(hidden_TD):
        kernels.stream_kernel[(min(plan.jobs, plan.programs),)](
            _described(hidden_TD, tile.rows, tile.width),
            _described(weight_VD, tile.columns, tile.width),
            bias_V,
            target_T.to(torch.int32),  # this copy is also aligned; a slice of int64 targets may not be
            *parts_3ST,
            len(hidden_TD),
            plan.tiles,
            plan.splits,
            V=len(weight_VD),
            D=hidden_TD.shape[1],
            SCALE=scale,
            SOFTCAP=softcap,
            HAS_BIAS=bias_V is not None,
            BLOCK_T=tile.rows,
            BLOCK_V=tile.columns,
            BLOCK_D=tile.width,
            GROUP=tile.group,
            UPCAST=INTERPRETED,
            num_warps=tile.warps,
            num_stages=tile.stages,
            enable_fp_fusion=True,
        )
    return slabs.normalize(slabs.merge(Running(*parts_3ST)), target_T)


def _absorb(block: Block, running: Running, graded: int) -> tuple[Tensor, Tensor]:
    product_RS = slabs.product(block.hidden_RD, block.weight_SD.T)
    target_R = block.column_R.to(torch.int32)
    arguments = _row_arguments(block, product_RS)
    if not graded:
        with _device(product_RS):
            merge_kernels.merge_kernel[(len(product_RS),)](product_RS, block.bias_S, target_R, *running, **arguments)
        return running.max_T[:0], product_RS[:0]
    exp_RS = torch.empty_like(product_RS, dtype=block.weight_SD.dtype)
    decay_R = torch.empty_like(running.max_T)
    with _device(product_RS):
        kernels.absorb_kernel[(len(product_RS),)](
            product_RS,
            block.bias_S,
            target_R,
            *running,
            decay_R,
            exp_RS,
            **arguments,
        )
    return decay_R, exp_RS[:graded]


def absorb_stats(
    blocks: tuple[Block, Block],
    running: tuple[Running, Running],
    moments: tuple[Tensor, Tensor],
    space: Tensor | None,
) -> None:
    """Adds one slab of some rows of both models to the sums of ``token_stats`` (``stats.Absorb``)."""
    mine, theirs = blocks
    product_RS, other_RS = (slabs.product(b.hidden_RD, b.weight_SD.T, b.space_RS) for b in blocks)
    with _device(product_RS):
        merge_kernels.stats_kernel[(len(product_RS),)](
            product_RS,
            other_RS,
            mine.bias_S,
            theirs.bias_S,
            mine.column_R.to(torch.int32),
            *running[0],
            *running[1],
            *moments,
            other_stride=other_RS.stride(0),
            OTHER_SCALE=theirs.scale,
            OTHER_SOFTCAP=theirs.softcap,
            OTHER_HAS_BIAS=theirs.bias_S is not None,
            **_row_arguments(mine, product_RS, STATS_COLUMNS),
        )


def _rescale(sums_GD: Tensor, decay_G: Tensor) -> None:
    rows, width = sums_GD.shape
    columns = min(ROW_COLUMNS, triton.next_power_of_2(width))
    with _device(sums_GD):
        merge_kernels.rescale_kernel[(rows,)](sums_GD, decay_G, width, sums_GD.stride(0), BLOCK_D=columns, num_warps=4)


def _residual(block: Block, factor_R: Tensor, miss_R: Tensor, shift_R: Tensor, log_sum_R: Tensor) -> Tensor:
    product_RS = slabs.product(block.hidden_RD, block.weight_SD.T)
    # not in place of the product: without a barrier, a row's writes would overtake its reads
    residual_RS = torch.empty_like(product_RS, dtype=block.weight_SD.dtype)
    arguments = _row_arguments(block, product_RS)
    with _device(product_RS):
        kernels.residual_kernel[(len(product_RS) * triton.cdiv(product_RS.shape[1], arguments["BLOCK_S"]),)](
            product_RS,
            block.bias_S,
            block.column_R.to(torch.int32),
            factor_R,
            miss_R,
            shift_R,
            log_sum_R,
            residual_RS,
            **arguments,
        )
    return residual_RS


def _row_arguments(block: Block, product_RS: Tensor, most: int | None = None) -> dict[str, object]:
    columns = min(most or ROW_COLUMNS, triton.next_power_of_2(product_RS.shape[1]))
    return {
        "S": product_RS.shape[1],
        "stride": product_RS.stride(0),
        "SCALE": block.scale,
        "SOFTCAP": block.softcap,
        "HAS_BIAS": block.bias_S is not None,
        "BLOCK_S": columns,
        "num_warps": ROW_WARPS,
        "enable_fp_fusion": True,
    }


def _described(matrix: Tensor, rows: int, columns: int) -> "TensorDescriptor":
    whole = matrix.contiguous()
    # a view may start at any address; the copy engine needs 16-byte boundaries
    return TensorDescriptor.from_tensor(whole if whole.data_ptr() % 16 == 0 else whole.clone(), [rows, columns])


def _device(tensor: Tensor) -> AbstractContextManager[object]:
    # Triton launches on the current device, which may differ from the tensor's
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


token_logp = register("fused", _forward, partial(slabs.backward, residual=_residual))
