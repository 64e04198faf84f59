"""The benchmark runs in one call and writes what it measured."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads a CPU's peak from /proc")
def test_one_call_measures_and_writes(tmp_path):
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
    chosen = ["--modes", "full", "nograd", "--providers", "chunked", "plain torch", "CCE", "--out", str(tmp_path)]
    subprocess.run([*command, *chosen], check=True, cwd=Path(__file__).parents[2])
    with open(tmp_path / "tiny.csv") as file:
        rows = list(csv.DictReader(file))
    assert {(row["mode"], row["provider"]) for row in rows} >= {
        (mode, provider) for mode in ("full", "nograd") for provider in ("chunked", "plain torch")
    }
    assert all(float(row["ms"]) > 0 and float(row["error_nats"]) < 1e-3 for row in rows)
    assert all(row["over_plain"] == row["plain_peak_over"] == "1.0" for row in rows if row["provider"] == "plain torch")
    assert all(row["over_prompted"] == "nan" for row in rows)  # plain torch over prompts too took no part
    assert "torch" in json.loads((tmp_path / "tiny.json").read_text())["versions"]
    assert (tmp_path / "tiny.png").stat().st_size > 1000
