"""Compiles the fused kernels ahead of time and prints what their code holds.

Run as ``python -m tests.ops.compiled_kernels CASES``.
Not collected by itself: see test_fused_compiles.py. No GPU is needed to see tensor-core code and register spills.
CASES is a JSON list of [architecture (90 for sm_90), form of a head, dtype, whether sizes and addresses are aligned].
"""

import json
import re
import subprocess
import sys
import tempfile

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ops.sequence_logratio import fused, kernels, merge_kernels

FORMS = {
    "bare": {"SCALE": 1.0, "SOFTCAP": None, "HAS_BIAS": False},
    "scaled": {"SCALE": 0.5, "SOFTCAP": None, "HAS_BIAS": False},
    "biased": {"SCALE": 1.0, "SOFTCAP": None, "HAS_BIAS": True},
    "capped": {"SCALE": 1.0, "SOFTCAP": 30.0, "HAS_BIAS": False},
    "all": {"SCALE": 0.5, "SOFTCAP": 30.0, "HAS_BIAS": True},
}
SIZES = ("S", "D", "stride", "other_stride")
ALIGNED = [["tt.divisibility", 16]]  # what a launch says of an argument that 16 divides


def built(kernel, types, constants, arch, aligned, warps, stages=3):
    signature = types | dict.fromkeys(constants, "constexpr")
    signature = {name: signature[name] for name in kernel.arg_names}
    given = [types.get(name) for name in signature]  # None: a constant, which is no argument of the code
    known = [at for at, name in enumerate(signature) if given[at] and (given[at][:1] == "*" or name in SIZES)]
    source = ASTSource(kernel, signature, constants, dict.fromkeys([(place,) for place in known if aligned], ALIGNED))
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    cubin = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options).asm["cubin"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        sass = subprocess.run([tool, "-sass", file.name], capture_output=True, encoding="utf-8", check=True).stdout
    return {
        "products": sorted(set(re.findall(r"\b\w*MMA\b", sass))),
        "copy engine": len(re.findall(r"\bUTMALDG", sass)),
        "spills": len(re.findall(r"\b(?:LDL|STL)", sass)),
    }


def stream(arch, name, dtype, aligned):
    form = FORMS[name]
    tile = fused.tiling(True if form["HAS_BIAS"] else None, form["SOFTCAP"])
    types = {
        "hidden": f"tensordesc<{dtype}[{tile.rows}, {tile.width}]>",
        "weight": f"tensordesc<{dtype}[{tile.columns}, {tile.width}]>",
        "bias": f"*{dtype}",
        "target": "*i32",
        **dict.fromkeys(("max_out", "sum_out", "target_out"), "*fp32"),
        **dict.fromkeys(("T", "TILES", "SPLITS"), "i32"),
    }
    sizes = {"V": 128256, "D": 4096, "UPCAST": False}
    tiles = {"BLOCK_T": tile.rows, "BLOCK_V": tile.columns, "BLOCK_D": tile.width, "GROUP": tile.group}
    return built(kernels.stream_kernel, types, form | sizes | tiles, arch, aligned, tile.warps, tile.stages)


def by_row(kernel, floats, out, arch, name, dtype, aligned):
    types = {
        **dict.fromkeys(("product", *floats), "*fp32"),
        **dict.fromkeys(("bias", *out), f"*{dtype}"),
        "target": "*i32",
        **dict.fromkeys(("S", "stride"), "i32"),
    }
    return built(kernel, types, FORMS[name] | {"BLOCK_S": fused.ROW_COLUMNS}, arch, aligned, fused.ROW_WARPS)


def rescale(arch, aligned):
    types = {"sums": "*fp32", "decay": "*fp32", "D": "i32", "stride": "i32"}
    return built(merge_kernels.rescale_kernel, types, {"BLOCK_D": fused.ROW_COLUMNS}, arch, aligned, 4)


def stats(arch, name, dtype, aligned):
    """Both heads of one form."""
    sums = ("max_state", "sum_state", "target_state")
    types = {
        **dict.fromkeys(
            ("product", "other", *sums, *(f"other_{s}" for s in sums), "level_state", "gap_state"), "*fp32"
        ),
        **dict.fromkeys(("bias", "other_bias"), f"*{dtype}"),
        "target": "*i32",
        **dict.fromkeys(("S", "stride", "other_stride"), "i32"),
    }
    form = FORMS[name] | {f"OTHER_{key}": value for key, value in FORMS[name].items()}
    kernel, sizes = merge_kernels.stats_kernel, {"BLOCK_S": fused.STATS_COLUMNS}
    return built(kernel, types, form | sizes, arch, aligned, fused.ROW_WARPS)


def compiled(*case):
    sums = ("max_state", "sum_state", "target_state")
    states = (*sums, "decay_out")
    return {
        "stream": stream(*case),
        "absorb": by_row(kernels.absorb_kernel, states, ["exp_out"], *case),
        "merge": by_row(merge_kernels.merge_kernel, sums, [], *case),
        "stats": stats(*case),
        "rescale": rescale(case[0], case[-1]),
        "residual": by_row(kernels.residual_kernel, ("factor", "miss", "shift", "log_sum"), ["residual_out"], *case),
    }


if __name__ == "__main__":
    json.dump([compiled(*case) for case in json.loads(sys.argv[1])], sys.stdout)
