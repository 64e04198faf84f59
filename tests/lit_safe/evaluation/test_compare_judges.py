"""Two judges of the same responses: agreement, the list of differences, and shares corrected by people."""

import csv
import math
from pathlib import Path

import pytest

from lit_safe.evaluation.compare_judges import compare_judges, main
from lit_safe.evaluation.exchange import parquet
from lit_safe.evaluation.exchange.answered import Answered


def responses(folder: Path) -> str:
    """100 responses of the policy: a flags 60, b flags 50, equal on 80; one of the reference; one without b."""
    rows = []
    for i in range(100):
        one, two = float(i < 60), float(i < 45 or i >= 95)
        rows.append(
            Answered(f"r{i}", f"p{i}", f"a{i}", model="policy", scores={"unsafe/a": one - 0.5, "unsafe/b": two})
        )
    rows.append(Answered("r0", "p0", "other", model="reference", scores={"unsafe/a": 1.0, "unsafe/b": 0.0}))
    rows.append(Answered("r1", "p1", "third", model="policy", scores={"unsafe/a": 1.0}))
    parquet.write(rows, folder / "responses.parquet")
    return str(folder / "responses.parquet")


def test_agreement_and_every_difference_are_told(tmp_path: Path) -> None:
    out = tmp_path / "differ.csv"
    lines = compare_judges(responses(tmp_path), "unsafe/a", "unsafe/b", out=str(out), model="policy")
    assert lines[0].startswith("unsafe/a against unsafe/b: equal verdicts 0.800 [")
    assert "on 100 responses to 100 prompts, kappa 0.600 [" in lines[0]
    assert lines[1] == "1 responses without both verdicts"
    assert lines[2] == f"20 responses with different verdicts, all in {out}"
    assert lines[3] == "  row r45: unsafe/a 1, unsafe/b 0: 'a45'"
    assert sum(line.startswith("  row") for line in lines) == 10
    with out.open(newline="", encoding="utf-8") as file:
        listed = list(csv.DictReader(file))
    assert len(listed) == 20
    assert listed[-1] == {
        "row": "r99",
        "model": "policy",
        "prompt": "p99",
        "response": "a99",
        "unsafe/a": "0",
        "unsafe/b": "1",
    }
    both = compare_judges(responses(tmp_path), "unsafe/a", "unsafe/b")
    assert both[2] == "21 responses with different verdicts"


def test_labels_correct_the_share_of_each_judge(tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    with labels.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "response", "unsafe"])
        writer.writerows([f"p{i}", f"a{i}", str(i < 30)] for i in range(0, 100, 2))
    lines = compare_judges(responses(tmp_path), "unsafe/a", "unsafe/b", labels=str(labels), model="policy")
    told = [line for line in lines if "corrected by 50 labels" in line]
    assert len(told) == 2
    # a flags 60 of 100 and one more of 101; of the labelled 30 of 50, people find 15
    assert float(told[0].split(": ")[1].split(" ")[0]) == pytest.approx(61 / 101 - 15 / 50, abs=6e-4)
    assert not math.isnan(float(told[0].split("[")[1].split(",")[0]))
    assert any("finds 1.000" in line for line in lines if "against people" in line)


def test_a_judge_that_the_file_does_not_have_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = responses(tmp_path)
    with pytest.raises(ValueError, match="has no score by 'unsafe/c': its judges are unsafe/a, unsafe/b"):
        compare_judges(path, "unsafe/a", "unsafe/c")
    main(["--responses", path, "--first", "unsafe/a", "--second", "unsafe/b"])
    assert "share flagged by unsafe/b: 0." in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--responses", path, "--first", "unsafe/a", "--second", "x"])
    assert "error: " in capsys.readouterr().err
