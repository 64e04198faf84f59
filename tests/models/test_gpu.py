"""``make gpu`` as CI can run it: on a CPU, with tiny sizes. It must find a wrong number, and must not hide a fault."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.gpu import correctness, prediction, steps
from models.gpu.__main__ import main
from models.gpu.random_model import SHAPES, RandomModel
from models.gpu.timing import Ceilings
from ops.sequence_logratio import chunked
from ops.sequence_logratio.cards import CARDS
from ops.sequence_logratio.fused import HAVE_TRITON


def test_every_comparison_with_float64_is_right_at_any_seed() -> None:
    for seed in range(3):
        rows = list(correctness.check("cpu", small=True, seed=seed, problems=3))
        assert {row["what"] for row in rows} > {"logp, float32", "grad hidden, float32", "token_stats"}
        assert not [row for row in rows if row["ok"] is False]


def test_a_wrong_log_prob_an_unwritten_one_and_a_wrong_gradient_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = chunked.token_logp
    faults = {
        "shifted": lambda *a: right(*a) + 1e-2,
        "unwritten": lambda *a: torch.cat([right(*a)[:-1], torch.empty(1)]),
        "no gradient of the head": lambda h, w, *a: right(h, w.detach() + 0 * w, *a),
    }
    for name, fault in faults.items():
        monkeypatch.setattr(chunked, "token_logp", fault)
        rows = list(correctness.check("cpu", small=True, seed=0, problems=1))
        assert [row for row in rows if row["ok"] is False], name


def test_the_shapes_are_those_of_their_names_and_operations_count_every_weight() -> None:
    counted = RandomModel("tiny", "float32").load_model()
    head, body = (
        counted.lm_head.weight.numel(),
        sum(p.numel() for p in counted.model.layers.parameters() if p.ndim == 2),
    )
    assert steps.operations("tiny", tokens=10, scored=3, online=True) == 8 * (10 * body + 3 * head)
    assert steps.operations("tiny", tokens=10, scored=3, online=False) == 6 * (10 * body + 3 * head)
    for name, (width, layers, heads, key_value, wide, vocabulary) in SHAPES.items():
        weights = layers * (2 * width * width * (1 + key_value / heads) + 3 * width * wide) + vocabulary * width
        assert name == "tiny" or weights == pytest.approx(1e9 * float(name[:-1]), rel=0.05)


def test_predictions_stand_beside_the_times_of_the_kernels_and_use_the_measured_rates() -> None:
    rows = [{"shape": "A", "mode": "nograd", "provider": provider, "ms": "30"} for provider in ("fused", "chunked")]
    slow, fast = (Ceilings(rate, 4e12) for rate in (4e14, 8e14))
    times = [prediction.predicted_ms(rows[0], CARDS["H200"], ceiling) for ceiling in (slow, fast)]
    assert times[0] == pytest.approx(2 * (times[1] or 0), rel=0.1)
    assert times[1] == pytest.approx(25, rel=0.1)
    assert prediction.predicted_ms(rows[1], CARDS["H200"], fast) is None
    assert prediction.predicted_ms(rows[0], None, fast) is None
    assert [row["predicted_ms"] for row in prediction.beside(rows, "cpu", fast)] == [None, None]


def test_a_machine_without_a_gpu_is_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert main([]) == 2
    assert "torch finds no CUDA device" in capsys.readouterr().err


@pytest.mark.slow  # the head's benchmark in processes of its own, and the kernels under the interpreter
def test_the_dry_run_measures_every_part_and_writes_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "models.gpu", "--device", "cpu", "--small", "--tune", "--out", str(tmp_path)]
    interpreted = {"TRITON_INTERPRET": "1"} if HAVE_TRITON else {}
    done = subprocess.run(
        command,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | interpreted,
        capture_output=True,
        encoding="utf-8",
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip().endswith("every number is right")
    report = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert set(report["parts"]) == {"kernels", "tests", "head tiny", "step tiny", "tuning"}
    assert {row["case"] for row in report["parts"]["step tiny"]} >= {
        "tiny padded, online reference",
        "tiny packed, cached reference",
    }
    assert all(row["seconds"] > 0 for row in report["parts"]["step tiny"])
    kernels = {row["kernel"] for row in report["parts"]["tuning"]}
    assert kernels == ({"stream", "merge", "rows", "chunked", "fused"} if HAVE_TRITON else {"chunked"})
    assert {row["predicted_ms"] for row in report["parts"]["head tiny"]} == {None}
    assert (tmp_path / "gpu.csv").read_text(encoding="utf-8").startswith("part,")
