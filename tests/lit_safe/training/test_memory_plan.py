"""What a run announces as its memory is what it uses, and where it does not fit, a setting that helps is named."""

import json
import os
import subprocess
import sys

import pytest
import torch

from lit_safe.training.memory_plan import MemoryPlan, plan_memory
from lit_safe.types import MemoryEstimate
from models.pair import PolicyReference
from models.sources import TinyLlama
from ops.sequence_logratio import peak_memory
from tests.lit_safe.pair_world import pairs
from tests.lit_safe.training.peak_cases import CASES

MIB = 2**20


def plan(available: int, tokens: int = 1024, **parts: int) -> MemoryPlan:
    sizes = {"weights": 100, "reference": 0, "gradients": 0, "optimizer": 0, "activations": 0, "logits": 0, **parts}
    return MemoryPlan(MemoryEstimate(**{name: size * MIB for name, size in sizes.items()}), available * MIB, tokens)


@pytest.mark.slow
@pytest.mark.skipif(peak_memory.missing() is not None, reason="no peak of the memory can be read on this system")
def test_the_memory_that_is_announced_is_within_15_per_cent_of_the_peak() -> None:
    command = [sys.executable, "-m", "tests.lit_safe.training.peak_cases"]
    run = subprocess.run(
        command, capture_output=True, encoding="utf-8", check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    found = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    assert len(found) == len(CASES), run.stderr
    wrong = [case for case in found if case["said"] != pytest.approx(case["used"], rel=0.15)]
    assert not wrong, wrong


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(peak_memory.missing() is not None, reason="no peak of the memory can be read on this system")
@pytest.mark.parametrize(("strategy", "above"), [("ddp", 0.15), ("fsdp2", 0.35)])
def test_what_each_of_two_ranks_announces_is_an_upper_bound_near_the_peak_of_its_steps(
    strategy: str, above: float
) -> None:
    """glibc keeps the memory of layers that are given back, unless it maps every large tensor by itself."""
    command = [sys.executable, "-m", "tests.lit_safe.training.peak_cases", "ranks", strategy]
    mapped = {"MALLOC_MMAP_THRESHOLD_": "262144"} if strategy == "fsdp2" else {}
    env = {**os.environ, "OMP_NUM_THREADS": "1", **mapped}
    run = subprocess.run(command, capture_output=True, encoding="utf-8", check=True, env=env)
    found = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    assert sorted(case["rank"] for case in found) == [0, 1], run.stderr
    wrong = [case for case in found if not case["used"] <= case["said"] <= (1 + above) * case["used"]]
    assert not wrong, wrong


def test_what_fits_needs_no_advice() -> None:
    fitting = plan(300, activations=150)
    assert fitting.fits
    assert fitting.sentence() == "needs about 0.24 GiB at most (activations 0.15, weights 0.10, …)"


def test_the_advice_is_the_largest_power_of_two_smaller_micro_batch_that_fits() -> None:
    assert "--data.micro_batch_tokens 256 " in plan(350, activations=800, logits=200).sentence()
    assert "--data.micro_batch_tokens 512 " in plan(600, activations=800, logits=200).sentence()


def test_the_advice_goes_to_what_is_large() -> None:
    assert "gradient_checkpointing" in plan(150, tokens=64, activations=300).sentence()
    assert "LastLayers" in plan(450, gradients=100, optimizer=200, reference=100, activations=20).sentence()
    assert "bfloat16" in plan(50, activations=20, logits=10).sentence()


def test_an_advised_micro_batch_fits_by_the_same_estimate() -> None:
    pair = PolicyReference(TinyLlama())
    pair.load()
    data = pairs(micro_batch_pairs=None, micro_batch_tokens=100_000, pairs_per_step=26)
    data.setup()
    whole = plan_memory(pair.memory_estimate(*data.largest_micro_batch), data, torch.device("cpu"))
    passing = whole.needed.activations + whole.needed.logits
    short = whole._replace(available=whole.needed.total - passing // 3)
    advised = int(short.first_change().split("micro_batch_tokens ")[1].split()[0])
    assert advised < whole.tokens
    smaller = pairs(micro_batch_pairs=None, micro_batch_tokens=advised, pairs_per_step=26)
    smaller.setup()
    assert whole._replace(needed=pair.memory_estimate(*smaller.largest_micro_batch)).needed.total <= short.available


def test_weights_that_are_loaded_count_as_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_safe.training.memory_plan.free_bytes", lambda device: 1000)
    pair = PolicyReference(TinyLlama())
    pair.load()
    data = pairs()
    data.setup()
    alone, shared = (
        plan_memory(pair.memory_estimate(*data.largest_micro_batch), data, torch.device("cpu"), ranks)
        for ranks in (1, 2)
    )
    assert alone.available == 1000 + alone.needed.weights + alone.needed.reference
    assert alone.available - shared.available == 500
