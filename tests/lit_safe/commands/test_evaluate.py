"""The command: a tiny model, judges of its text, what is written, and what a killed call keeps."""

import csv
import logging
from functools import partial
from pathlib import Path

import pytest
import torch
from pyarrow import parquet

from lit_safe.commands import evaluate as command
from lit_safe.errors.message import SettingError
from lit_safe.evaluation import kept_answers
from lit_safe.evaluation.suites import Suite
from tests.lit_safe.evaluate_world import SUITES, Asked, Dies, Even, Unsure, evaluate_as_rank, finding, run
from tests.ranks import run_on_two_ranks

PLOT = command.plot
MANY = {**SUITES, "bad": Suite(Asked("bad", 24), harmful=True)}


@pytest.fixture(autouse=True)
def _without_a_figure(monkeypatch):
    """A figure takes most of a test's time. One test draws it."""
    monkeypatch.setattr(command, "plot", lambda report, path: None)


def rows(folder, name="run/evaluation"):
    return parquet.read_table(folder / name / "responses.parquet").to_pylist()


def test_both_axes_are_reported_from_the_responses_that_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "plot", PLOT)
    report = run(tmp_path, samples_per_prompt=2, harm_judges={"even": Even()}, reward=Even())
    written = rows(tmp_path)
    assert len(written) == 2 * 2 * 14  # both models, two responses to each prompt
    ours = [row for row in written if row["model"] == "policy" and row["harmful"]]
    refused = [len(row["response"]) % 2 == 0 for row in ours]
    assert finding(report, "complied")["policy"]["mean"] == pytest.approx(1 - sum(refused) / 16)
    assert finding(report, "unsafe/even")["policy"]["mean"] == pytest.approx(sum(refused) / 16)
    assert finding(report, "refused", "good")["policy"]["clusters"] == 6
    assert finding(report, "complied", category="drugs")["policy"]["clusters"] == 4
    assert finding(report, "reward", "good")["difference"]["count"] == 12
    assert report["policy"]["step"] == 7
    assert report["decoding"]["greedy"] is False
    folder = tmp_path / "run" / "evaluation"
    page = (folder / "report.md").read_text(encoding="utf-8")
    assert "| bad, harmful prompts, theft | complied" in page
    assert (folder / "report.png").stat().st_size > 1000
    events = b"".join(path.read_bytes() for path in (folder / "tensorboard").iterdir())
    assert b"evaluation/bad_harmful/complied/policy" in events


def test_the_plan_is_said_before_the_first_response(tmp_path, monkeypatch, caplog):
    said = []

    def answer(*args, **options):
        said.extend(caplog.messages)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "kept_answers", answer)
    with caplog.at_level(logging.INFO), pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert any(line.startswith("bad: 8 harmful prompts. Found with probability 80 %") for line in said)


def test_the_same_policy_answers_as_its_reference_does(tmp_path):
    report = run(tmp_path, spread=None)
    by_model = {
        model: [(row["row"], row["response"]) for row in rows(tmp_path) if row["model"] == model]
        for model in ("policy", "reference")
    }
    assert by_model["policy"] == by_model["reference"]
    assert finding(report, "complied")["difference"]["mean"] == 0
    assert finding(report, "complied")["p"] == 1.0


def test_a_killed_call_continues_and_more_prompts_draw_only_what_is_new(tmp_path, monkeypatch):
    whole = run(tmp_path)
    kept = tmp_path / "run" / "evaluation" / "responses.jsonl"
    lines = kept.read_text(encoding="utf-8").splitlines(keepends=True)
    assert len(lines) == 28
    kept.write_text("".join(lines[:9]) + lines[9][:20], encoding="utf-8")  # killed while it wrote a line
    drawn = []
    draw = kept_answers.draw_texts
    monkeypatch.setattr(kept_answers, "draw_texts", lambda *a, **o: drawn.append(len(a[2])) or draw(*a, **o))
    assert run(tmp_path, batch_size=3)["findings"] == whole["findings"]
    assert sum(drawn) == 28 - 9
    drawn.clear()
    more = {**SUITES, "good": Suite(Asked("good", 8), harmful=False)}
    run(tmp_path, suites=more, seed=0)
    assert sum(drawn) == 2 * 2
    drawn.clear()
    run(tmp_path, seed=1)
    assert sum(drawn) == 28, "another seed is another response"


def test_a_judge_that_dies_midway_is_asked_again_only_for_what_is_missing(tmp_path):
    with pytest.raises(ConnectionError, match="the judge is gone"):
        run(tmp_path, refusal_judge=Dies())
    Dies.lives = True
    try:
        judge = Dies()
        run(tmp_path, refusal_judge=judge)
    finally:
        Dies.lives = False
    texts = {(row["prompt"], row["response"]) for row in rows(tmp_path)}
    assert len(judge.read) == len(texts) - 4  # the first batch was kept


def test_scores_that_are_not_finite_are_counted_named_and_left_out(tmp_path, caplog):
    report = run(tmp_path, refusal_judge=Unsure())
    assert report["responses"]["policy"]["unknown"]["refusal"] == {"count": 2, "rows": ["bad:1", "good:1"]}
    assert finding(report, "complied")["policy"]["count"] == 7
    assert finding(report, "complied")["unknown"] == 2
    assert "gave no finite score for 2 responses of the policy, for example row bad:1" in caplog.text
    page = (tmp_path / "run" / "evaluation" / "report.md").read_text(encoding="utf-8")
    assert "refusal: 2 scores are not finite and left out, for example: bad:1, good:1" in page


def test_a_model_without_a_checkpoint_is_compared_with_nothing(tmp_path):
    report = run(tmp_path, ckpt_path=None, out=str(tmp_path / "hub"), temperature=0.0)
    assert report["reference"] is None
    assert report["decoding"]["greedy"] is True
    assert finding(report, "complied")["difference"] is None
    assert {row["model"] for row in rows(tmp_path, "hub")} == {"policy"}


def test_empty_responses_are_counted_and_named(tmp_path, monkeypatch):
    draw = kept_answers.draw_texts

    def silent(*words, **options):
        return [one._replace(text=" ") for one in draw(*words, **options)]

    monkeypatch.setattr(kept_answers, "draw_texts", silent)
    report = run(tmp_path)
    assert report["responses"]["policy"]["empty"] == 14
    assert report["responses"]["policy"]["empty_rows"][0] == "bad:0"
    assert finding(report, "empty", "good")["policy"]["mean"] == 1.0


def test_labels_of_responses_correct_the_shares_and_others_end_the_command_before_a_judge_is_asked(tmp_path):
    first = run(tmp_path, suites=MANY, harm_judges={"even": Even()}, max_new_tokens=2)
    assert finding(first, "unsafe/even")["corrected"] is None
    assert first["not_corrected"]["refused"].startswith("the judge's card does not say")
    labels = tmp_path / "labels.csv"
    with labels.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "response", "unsafe"])
        writer.writerows((row["prompt"], row["response"], False) for row in rows(tmp_path) if row["harmful"])
    report = run(tmp_path, suites=MANY, harm_judges={"even": Even()}, max_new_tokens=2, human_labels=str(labels))
    corrected = finding(report, "unsafe/even")["corrected"]
    assert (corrected["policy"]["mean"], corrected["reference"]["mean"], corrected["by"]) == (0, 0, "48 labels")
    assert corrected["policy"]["high"] > 0
    page = (tmp_path / "run" / "evaluation" / "report.md").read_text(encoding="utf-8")
    assert "### Harmful prompts: shares as people would find them" in page
    assert "- refused: not corrected: labels of fewer than 20 prompts, and the judge's card" in page
    labels.write_text("prompt,response,unsafe\nbad 0?,of another run,1\n", encoding="utf-8")
    judge = Even()
    with pytest.raises(ValueError, match="is a response of this evaluation"):
        run(tmp_path, suites=MANY, refusal_judge=judge, max_new_tokens=2, human_labels=str(labels))
    assert judge.read == []
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.csv"):
        run(tmp_path, out=str(tmp_path / "new"), human_labels=str(tmp_path / "none.csv"))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature must be >= 0"),
        ({"temperature": 0.0, "samples_per_prompt": 2}, "all responses to a prompt are equal"),
        ({"ckpt_path": None}, "without --ckpt_path nothing says where to write"),
        ({"batch_size": 0}, "batch_size must be >= 1"),
    ],
)
def test_settings_that_do_not_fit_end_before_a_response(tmp_path, options, message):
    with pytest.raises(SettingError, match=message):
        run(tmp_path, **options)
    assert not (tmp_path / "run" / "evaluation").exists()


@pytest.mark.slow
def test_two_ranks_share_the_responses_and_find_the_same(tmp_path: Path):
    alone = run(tmp_path, out=str(tmp_path / "alone"), samples_per_prompt=2)
    run_on_two_ranks(partial(evaluate_as_rank, tmp_path), tmp_path)
    together = run(tmp_path, out=str(tmp_path / "together"), samples_per_prompt=2)
    assert together["findings"] == alone["findings"]
    assert rows(tmp_path, "together") == rows(tmp_path, "alone")
    assert torch.distributed.is_initialized() is False
