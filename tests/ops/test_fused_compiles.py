"""The Triton kernels compiled ahead of time for sm_90: no GPU is needed to see tensor-core code and register spills.

In a process of its own, because whether kernels are interpreted is decided where they are decorated.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ops.sequence_logratio.fused import HAVE_TRITON

COMPILE = """
import itertools, json, re, subprocess, sys, tempfile
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from ops.sequence_logratio import fused, kernels

FORMS = {
    "bare": dict(SCALE=1.0, SOFTCAP=None, HAS_BIAS=False),
    "scaled": dict(SCALE=0.5, SOFTCAP=None, HAS_BIAS=False),
    "biased": dict(SCALE=1.0, SOFTCAP=None, HAS_BIAS=True),
    "capped": dict(SCALE=1.0, SOFTCAP=30.0, HAS_BIAS=False),
    "all": dict(SCALE=0.5, SOFTCAP=30.0, HAS_BIAS=True),
}

def built(kernel, types, constants, warps, stages):
    signature = types | dict.fromkeys(constants, "constexpr")
    ordered = {name: signature[name] for name in kernel.arg_names}
    source = ASTSource(kernel, ordered, constants)
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    cubin = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["cubin"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        sass = subprocess.run([tool, "-sass", file.name], capture_output=True, text=True, check=True).stdout
    count = lambda name: len(re.findall(rf"\\b{name}", sass))
    return {"tensor cores": count("HGMMA"), "copy engine": count("UTMALDG"), "spills": count("LDL") + count("STL")}

found = {}
for name in sys.argv[1:]:
    form = FORMS[name]
    tile = fused.tiling(True if form["HAS_BIAS"] else None, form["SOFTCAP"])
    for dtype in ("bf16", "fp16"):
        states = dict.fromkeys(("max_out", "sum_out", "target_out"), "*fp32")
        pointers = {"bias": f"*{dtype}", "target": "*i32"} | states
        blocks = {
            "hidden": f"tensordesc<{dtype}[{tile.rows}, {tile.width}]>",
            "weight": f"tensordesc<{dtype}[{tile.columns}, {tile.width}]>",
        }
        sizes = dict(V=128256, D=4096, BLOCK_T=tile.rows, BLOCK_V=tile.columns, BLOCK_D=tile.width, UPCAST=False)
        types = blocks | pointers | {"T": "i32", "TILES": "i32"}
        key = f"stream {name} {dtype}"
        found[key] = built(kernels.stream_kernel, types, form | sizes, tile.warps, tile.stages)
    row = {"product": "*fp32", "bias": "*bf16", "target": "*i32", "S": "i32", "stride": "i32"}
    constants = form | {"BLOCK_S": fused.ROW_COLUMNS}
    states = dict.fromkeys(("max_state", "sum_state", "target_state", "decay_out"), "*fp32") | {"exp_out": "*bf16"}
    found[f"absorb {name}"] = built(kernels.absorb_kernel, row | states, constants, 8, 3)
    states = dict.fromkeys(("factor", "miss", "shift", "log_sum"), "*fp32") | {"residual_out": "*bf16"}
    found[f"residual {name}"] = built(kernels.residual_kernel, row | states, constants, 8, 3)
json.dump(found, sys.stdout)
"""


@pytest.mark.skipif(not HAVE_TRITON, reason="triton is not installed")
@pytest.mark.parametrize(
    "forms", [["bare"], pytest.param(["scaled", "biased", "capped", "all"], marks=pytest.mark.slow)], ids=str
)
def test_sm_90_code_multiplies_on_tensor_cores_and_spills_nothing(forms, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, *forms],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {name: code for name, code in found.items() if code["spills"]} == {}
    streams = [code for name, code in found.items() if name.startswith("stream")]
    assert len(streams) == 2 * len(forms)
    assert all(code["tensor cores"] and code["copy engine"] for code in streams)
