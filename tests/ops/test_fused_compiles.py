"""The Triton kernels compiled ahead of time: tensor-core code without register spills, and the table in evidence.py.

In a process of its own, because whether kernels are interpreted is decided where they are decorated.
"""

import importlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode

from ops.sequence_logratio import api, chunked, fused
from ops.sequence_logratio.evidence import COMPILED, TRITON
from ops.sequence_logratio.fused import HAVE_TRITON

VERSION = importlib.import_module("triton").__version__ if HAVE_TRITON else "not installed"
needs_triton = pytest.mark.skipif(not HAVE_TRITON, reason="triton is not installed")
needs_that_triton = pytest.mark.skipif(
    VERSION != TRITON, reason=f"the table and the tiles are of Triton {TRITON}, here it is {VERSION}"
)
FORMS = ["bare", "scaled", "biased", "capped", "all"]


def compiled(cases, cache):
    """What each case (architecture, form of a head, dtype, aligned) compiles to, by kernel."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.ops.compiled_kernels", json.dumps(cases)],
        env=environment | {"TRITON_CACHE_DIR": str(cache)},
        capture_output=True,
        encoding="utf-8",
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def spilling(cases, found):
    return {
        (*case, kernel): code["spills"]
        for case, kernels in zip(cases, found, strict=True)
        for kernel, code in kernels.items()
        if code["spills"]
    }


def spills_nothing_on_sm_90(forms, dtypes, aligned, cache):
    cases = list(itertools.product([90], forms, dtypes, aligned))
    found = compiled(cases, cache)
    assert spilling(cases, found) == {}
    streams = [kernels["stream"] for kernels in found]
    assert all(code["products"] == ["HGMMA"] and code["copy engine"] for code in streams)


@needs_triton
def test_sm_90_code_of_a_bare_head_multiplies_on_tensor_cores_and_spills_nothing(tmp_path):
    spills_nothing_on_sm_90(FORMS[:1], ["bf16"], [True], tmp_path)


@needs_that_triton
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sm_90_code_of_every_form_multiplies_on_tensor_cores_and_spills_nothing(tmp_path):
    spills_nothing_on_sm_90(FORMS, ["bf16", "fp16"], [True, False], tmp_path)


@needs_that_triton
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("capability", COMPILED, ids=str)
def test_the_table_says_what_the_compiler_makes(capability, tmp_path):
    said = COMPILED[capability]
    forms = FORMS[:1] if said.spills else FORMS
    cases = [(10 * capability[0] + capability[1], form, "bf16", True) for form in forms]
    found = compiled(cases, tmp_path)
    assert found[0]["stream"]["products"] == [said.product]
    assert found[0]["stream"]["spills"] == said.spills
    assert bool(spilling(cases, found)) == bool(said.spills)


@pytest.mark.parametrize(
    ("capability", "expected", "why"),
    [
        ((9, 0), fused, ""),
        ((12, 0), fused, ""),
        ((8, 0), chunked, "not fused: its code for compute capability 8.0 spills registers"),
        ((13, 0), chunked, "not fused: its kernels were not compiled for compute capability 13.0"),
    ],
    ids=["9.0", "12.0", "8.0", "13.0"],
)
def test_auto_takes_the_fused_kernels_only_where_they_compile_without_spills(capability, expected, why, monkeypatch):
    said = []
    monkeypatch.setattr(fused, "HAVE_TRITON", True)
    monkeypatch.setattr(fused, "launch_fault", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(api, "_say_once", lambda name, reasons: said.append(reasons))
    with FakeTensorMode():
        head = [torch.empty(rows, 64, dtype=torch.bfloat16, device="cuda") for rows in (5, 70)]
        assert api.choose("auto", *head) is expected
        assert api.choose("fused", *head) is fused  # named, it runs where it can
    assert said[0].startswith(why)
    assert bool(said[0]) == bool(why)


def test_auto_leaves_the_fused_kernels_alone_on_an_amd_gpu_whose_number_is_that_of_another(monkeypatch):
    monkeypatch.setattr(fused, "HAVE_TRITON", True)
    monkeypatch.setattr(fused, "launch_fault", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.version, "hip", "7.0")
    with FakeTensorMode():
        head = [torch.empty(rows, 64, dtype=torch.bfloat16, device="cuda") for rows in (5, 70)]
        assert api.choose("auto", *head) is chunked


@needs_triton
def test_auto_leaves_the_fused_kernels_alone_where_triton_finds_no_compiler(monkeypatch):
    def build():
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.\nMore lines.")

    class Driver:
        utils = property(lambda self: build())

    said = []
    monkeypatch.setattr(fused.triton.runtime.driver, "_active", Driver())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(api, "_say_once", lambda name, reasons: said.append(reasons))
    fused.launch_fault.cache_clear()
    with FakeTensorMode():
        head = [torch.empty(rows, 64, dtype=torch.bfloat16, device="cuda") for rows in (5, 70)]
        assert api.choose("auto", *head) is chunked
        with pytest.raises(ValueError, match=r"'fused' cannot run here: .*gcc or clang.*: Failed to find C compiler"):
            api.choose("fused", *head)
    fused.launch_fault.cache_clear()
    assert said[0].startswith("not fused: Triton cannot build its launcher")
    assert "\n" not in said[0]
