"""Times candidates for the static tables of the kernels. It changes no file: the tables are edited by hand.

Letters: T positions, D hidden width, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch

from models.gpu.timing import seconds
from ops.sequence_logratio import fused, routes, slabs, token_logp
from ops.sequence_logratio.bench_cases import make_case
from ops.sequence_logratio.fused import Tiling

Row = dict[str, object]

TILINGS = (
    Tiling(128, 256, 64, 8, 3),
    Tiling(128, 256, 64, 8, 4),
    Tiling(128, 128, 64, 4, 4),
    Tiling(128, 128, 64, 8, 4),
    Tiling(128, 128, 128, 8, 3),
    Tiling(256, 128, 64, 8, 3),
    Tiling(256, 128, 64, 8, 4),
    Tiling(64, 256, 64, 4, 4),
)
GROUPS = (0, 8, 16, 32)
PROGRAMS = (None, 264, 2**31)  # one for each multiprocessor, two for each of an H200, one for each job
ROWS = ((1024, 4), (2048, 4), (2048, 8), (4096, 16))  # columns of a row per program, warps
BLOCKS_MIB = (64, 128, 256, 512, 1024)


def candidates(device: str, small: bool) -> Iterator[Row]:
    """One row for each candidate: the kernel, the candidate and the median milliseconds.

    The streaming kernel is timed on a forward pass without gradient. The row kernels and the size of a block are timed
    on a forward and a backward pass. Each candidate is the only difference from the tables in ``fused.py``.
    """
    case = make_case("tiny" if small else "A", device)
    if small:  # for Triton's interpreter, which takes a second for what a GPU does in a microsecond
        weight_VD, target_T = case.weight_VD[:200], case.target_T[:40] % 200
        case = case._replace(hidden_TD=case.hidden_TD[:40], weight_VD=weight_VD, target_T=target_T)
    usable = fused.unsupported(case.hidden_TD, case.weight_VD)

    def forward() -> None:
        with torch.no_grad():
            token_logp(case.hidden_TD, case.weight_VD, case.target_T, backend="fused")

    def step(backend: str) -> Callable[[], None]:
        def run() -> None:
            hidden_TD, weight_VD = (x.detach().requires_grad_() for x in (case.hidden_TD, case.weight_VD))
            logp_T = token_logp(hidden_TD, weight_VD, case.target_T, backend=backend)
            logp_T.sum().backward()

        return run

    if usable is None:
        tilings = (fused.INTERPRETED_TILING,) if small else TILINGS
        before, programs, rows = dict(fused.TILINGS), fused.PROGRAMS, (fused.ROW_COLUMNS, fused.ROW_WARPS)
        try:
            routes.ALWAYS = "stream"
            for tile, group in itertools.product(tilings, GROUPS[:2] if small else GROUPS):
                fused.TILINGS["bare"] = tile._replace(group=group)
                yield _timed("stream", f"{tile._replace(group=group)}", forward, device, small)
            fused.TILINGS.update(before)
            for fused.PROGRAMS in PROGRAMS:
                yield _timed("stream", f"PROGRAMS {fused.PROGRAMS}", forward, device, small)
            fused.PROGRAMS = programs
            routes.ALWAYS = "merge"
            yield _timed("merge", "slabs of the library", forward, device, small)
            for fused.ROW_COLUMNS, fused.ROW_WARPS in ROWS:
                name = f"ROW_COLUMNS {fused.ROW_COLUMNS}, ROW_WARPS {fused.ROW_WARPS}"
                yield _timed("rows", name, step("fused"), device, small)
        finally:
            routes.ALWAYS = None
            fused.TILINGS.update(before)
            fused.PROGRAMS, (fused.ROW_COLUMNS, fused.ROW_WARPS) = programs, rows
    block = slabs.BLOCK_BYTES[device]
    try:
        for mebibytes in (1, 2) if small else BLOCKS_MIB:
            slabs.BLOCK_BYTES[device] = mebibytes * 2**20
            for backend in ["chunked", *(["fused"] if usable is None else [])]:
                yield _timed(backend, f"blocks of {mebibytes} MiB", step(backend), device, small)
    finally:
        slabs.BLOCK_BYTES[device] = block


def _timed(kernel: str, candidate: str, work: Callable[[], None], device: str, small: bool) -> Row:
    try:
        times = sorted(seconds(work, device) for _ in range(2 if small else 8))
    except Exception as error:  # a candidate that does not fit the card is a result as well
        reason = str(error).partition("\n")[0][:80]
        return {"kernel": kernel, "candidate": f"{candidate} ({reason})", "ms": float("nan")}
    return {"kernel": kernel, "candidate": candidate, "ms": 1e3 * times[(len(times) - 1) // 2]}
