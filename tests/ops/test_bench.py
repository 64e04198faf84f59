"""The benchmark runs in one call and writes what it measured."""

import csv
import json
import math
import subprocess
import sys
from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from ops.sequence_logratio import bench_cases, peak_memory
from ops.sequence_logratio.bench import peak_mib, take_turns
from ops.sequence_logratio.bench_cases import FLOOR, make_case

OPTIONAL = {  # provider: module, package
    "TRL selective_log_softmax": ("trl", "trl"),
    "CCE": ("cut_cross_entropy", "cut-cross-entropy"),
    "CCE exact": ("cut_cross_entropy", "cut-cross-entropy"),
    "Liger DPO": ("liger_kernel", "liger-kernel"),
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(peak_memory.missing() is not None, reason=str(peak_memory.missing()))
def test_one_call_measures_every_mode_names_what_is_not_installed_and_writes(tmp_path):
    command = [
        sys.executable,
        "-m",
        "ops.sequence_logratio.bench",
        "--shape",
        "tiny",
        "--device",
        "cpu",
        "--repeats",
        "1",
    ]
    absent = [name for name, (module, _) in OPTIONAL.items() if find_spec(module) is None]
    chosen = ["--providers", "chunked", "plain torch", *absent, "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, *chosen], check=True, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, encoding="utf-8"
    )
    left_out = [line for line in done.stdout.splitlines() if line.startswith("left out: ")]
    assert left_out == [f"left out: {name}: {OPTIONAL[name][1]} is not installed" for name in absent]
    with open(tmp_path / "tiny.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["mode"], row["provider"]) for row in rows] == [
        (mode, provider) for mode in FLOOR for provider in ("chunked", "plain torch")
    ]
    assert all(float(row["ms"]) > 0 and float(row["error_nats"]) < 1e-3 for row in rows)
    assert all(row["over_plain"] == row["plain_peak_over"] == "1.0" for row in rows if row["provider"] == "plain torch")
    assert all(row["over_prompted"] == "nan" for row in rows)  # plain torch over prompts too took no part
    assert "torch" in json.loads((tmp_path / "tiny.json").read_text(encoding="utf-8"))["versions"]
    assert (tmp_path / "tiny.png").stat().st_size > 1000


@pytest.mark.parametrize("mode", ["full", "frozen"])
def test_a_step_of_ours_takes_both_models_in_the_call_that_training_makes_and_computes_what_plain_torch_does(
    mode, monkeypatch
):
    case = make_case("tiny", "cpu")
    hidden_TD, reference_TD = (x[:32].double().requires_grad_() for x in (case.hidden_TD, case.reference_TD))
    case = case._replace(
        hidden_TD=hidden_TD, reference_TD=reference_TD, weight_VD=case.weight_VD[:500].double(), sequences=2,
        target_T=case.target_T[:32] % 500,
    )  # fmt: skip
    losses, calls = [], []
    of_pairs, both = bench_cases._pair_loss, bench_cases.both_sequence_logp
    monkeypatch.setattr(bench_cases, "_pair_loss", lambda x: losses.append(of_pairs(x)) or losses[-1])
    monkeypatch.setattr(bench_cases, "both_sequence_logp", lambda *a, **k: calls.append(a) or both(*a, **k))
    named = bench_cases.providers(["chunked", "plain torch"])
    for provider in named.values():
        bench_cases.step(case, provider, mode)()
    assert len(calls) == 1
    assert (calls[0][0].weight_VD is calls[0][1].weight_VD) == (mode == "frozen")
    torch.testing.assert_close(losses[0].double(), losses[1].double(), rtol=1e-5, atol=1e-6)


def test_a_cpu_without_a_readable_peak_has_no_number_for_it(monkeypatch):
    monkeypatch.setattr(peak_memory, "CLEAR", Path("/nowhere/clear_refs"))
    assert math.isnan(peak_mib(Namespace(shape="tiny", threads=1), make_case("tiny", "cpu"), "chunked", "full"))


def test_a_step_that_runs_out_of_memory_leaves_and_the_others_go_on():
    turns = []

    def grows():
        turns.append("grows")
        if len(turns) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
        return {"total": 1.0}

    def fits():
        turns.append("fits")
        return {"total": 2.0}

    running = {"grows": grows, "fits": fits}
    assert take_turns(running, 2) == ({"fits": [{"total": 2.0}] * 2}, {"grows": "CUDA out of memory."})
    assert turns == ["grows", "fits", "grows", "fits", "fits"]
