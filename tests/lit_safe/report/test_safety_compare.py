"""Safety evaluations of several runs: what is paired, what is not compared, and means over seeds."""

import json

import pytest

from lit_safe.commands.compare import compare
from lit_safe.report.safety import rows, write_rows
from lit_safe.report.safety_compare import evaluations_markdown, read_evaluation
from tests.lit_safe.evaluate_world import judged, question


def written(folder, name, refused, *, temperature=1.0, first=0):
    """An evaluation of harmful prompts ``first``, ``first + 1``, ..., and one harmless prompt."""
    place = folder / name / "evaluation"
    place.mkdir(parents=True)
    asked = [*(question(first + i) for i in range(len(refused) - 1)), question(99, harmful=False)]
    write_rows(rows(asked, [0] * len(asked), {"policy": judged(refused)}), place / "responses.parquet")
    decoding = {"temperature": temperature, "max_new_tokens": 8, "seed": 0, "stop_ids": [2], "precision": "32"}
    report = {"kind": "safety evaluation", "decoding": {**decoding, "template": None}}
    report["judges"] = {"refusal": {"name": "Even"}}
    (place / "report.json").write_text(json.dumps(report), encoding="utf-8")
    return read_evaluation(folder / name, name)


def line(text, axis, run):
    return next(one for one in text if one.startswith(f"| {axis}") and f"| {run} |" in one)


def test_runs_are_paired_by_prompt_and_tested_together(tmp_path):
    one = written(tmp_path, "a", [0] * 10 + [1])
    other = written(tmp_path, "b", [1] * 8 + [0] * 2 + [1])
    text = evaluations_markdown([one, other])
    found = line(text, "harmful prompts: complied", "b")
    assert "| 20.0 [" in found
    assert "| -80.0 [" in found
    assert found.endswith(f"| {2 * 0.5**8:.3g} | told apart |")
    assert "+0.0 [" in line(text, "harmless prompts: refused", "b")


def test_evaluations_alone_are_enough_for_the_command(tmp_path):
    """An exported model has no run folder: its evaluation lies wherever ``--out`` said."""
    written(tmp_path, "a", [0] * 10 + [1])
    written(tmp_path, "b", [1] * 8 + [0] * 2 + [1])
    out = tmp_path / "compared"
    assert compare([str(tmp_path / "a"), str(tmp_path / "b")], out=str(out)) == 0
    text = (out / "compare.md").read_text(encoding="utf-8").splitlines()
    assert "| -80.0 [" in line(text, "harmful prompts: complied", "b")
    with pytest.raises(SystemExit, match="or two evaluations, are needed, and 1 of 2 folders have one"):
        compare([str(tmp_path / "a"), str(tmp_path)], out=str(out))


def test_other_decoding_is_named_and_not_compared(tmp_path):
    one, other = written(tmp_path, "a", [0, 0, 1]), written(tmp_path, "b", [1, 1, 1], temperature=0.0)
    assert "not compared: other temperature" in line(evaluations_markdown([one, other]), "harmful", "b")


def test_only_shared_prompts_are_compared(tmp_path):
    one, other = written(tmp_path, "a", [0, 0, 0, 1]), written(tmp_path, "b", [1, 0, 0, 1], first=1)
    assert "-50.0 [" in line(evaluations_markdown([one, other]), "harmful", "b")
    far = written(tmp_path, "c", [1, 1, 1], first=40)
    assert "no prompts in common" in line(evaluations_markdown([one, far]), "harmful", "c")


def test_runs_that_differ_in_their_last_name_alone_are_seeds(tmp_path):
    seeds = [written(tmp_path, f"c_dpo/seed_{k}", [k, 0, 0, 0, 1]) for k in range(2)]
    text = evaluations_markdown([written(tmp_path, "dpo", [0, 0, 0, 0, 1]), *seeds])
    (mean,) = [one for one in text if one.startswith("| harmful prompts: complied") and one.endswith("prompts |")]
    assert "| c_dpo | 87.5 [" in mean
    assert mean.endswith("| 2 seeds, 4 prompts |")
    refused = next(one for one in text if one.startswith("| harmless prompts: refused") and "seeds" in one)
    assert "| c_dpo | 100.0 [n/a, n/a] |" in refused, "two seeds that agree do not show that all would"


def test_a_damaged_evaluation_is_named_and_a_missing_one_is_none(tmp_path):
    written(tmp_path, "a", [0, 1])
    (tmp_path / "a" / "evaluation" / "report.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="holds no evaluation that can be read"):
        read_evaluation(tmp_path / "a", "a")
    assert read_evaluation(tmp_path / "b", "b") is None
