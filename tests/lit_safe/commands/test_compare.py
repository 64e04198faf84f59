import csv
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_safe.cli import main
from lit_safe.commands.compare import compare
from lit_safe.evaluation.evaluate import Evaluation, differences, evaluate, oriented
from lit_safe.evaluation.paired_rows import turned
from lit_safe.report.tables import write_json, write_tables
from lit_safe.statistics.clustered import clustered_mean
from tests.lit_safe.dual_world import TableCost, optimum
from tests.lit_safe.held_out_world import HeldOut, module
from tests.lit_safe.pair_world import Fruit, aligned, pairs
from tests.lit_safe.report.test_safety_compare import written


def evaluation(policy_PK: torch.Tensor | None = None) -> Evaluation:
    return evaluate(module(policy_PK), HeldOut(), cost=TableCost(), samples_per_prompt=3)


SETTINGS = {
    "order": "helpful", "template": "3f2a", "data seed": 0, "scorer": "TableCost", "scorer.units": "probability",
    "scorer.digest": "aa", "max_new_tokens": 48, "temperature": 1.0, "stop_ids": [2], "response seed": 0,
}  # fmt: skip


def finish(folder, after: Evaluation, objective: str, lr: float = 1e-5, before=None, **settings) -> str:
    folder.mkdir(parents=True)
    write_tables(folder, before or evaluation(), after)
    report = {"objective": {"name": objective, "text": f"{objective}()"}, "settings": {**SETTINGS, **settings}}
    write_json(folder / "report.json", report)
    config = {"seed_everything": 0, "model": {"init_args": {"optimizer": {"init_args": {"lr": lr}}}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return str(folder)


@pytest.fixture
def runs(tmp_path):
    safe = finish(tmp_path / "runs" / "safe", evaluation(optimum(3.0)), "SafeDPO", 2e-5)
    plain = finish(tmp_path / "runs" / "plain", evaluation(optimum(0.0)), "DPO")
    return [plain, safe]


def rows(out) -> dict[tuple[str, str], dict[str, str]]:
    with (out / "compare.csv").open(encoding="utf-8") as file:
        return {(row["run"], row["measure"]): row for row in csv.DictReader(file)}


def test_differences_are_paired_by_pair_and_clustered_by_prompt(runs, tmp_path, capsys):
    out = tmp_path / "compared"
    assert compare(runs, out=str(out)) == 0
    safe, plain = evaluation(optimum(3.0)).pairs, evaluation(optimum(0.0)).pairs
    expected = clustered_mean(safe["logp_chosen"] - plain["logp_chosen"], safe["prompt_id"])
    row = rows(out)["safe", "logps/chosen"]
    assert float(row["difference"]) == pytest.approx(expected.mean)
    assert float(row["difference_stderr"]) == pytest.approx(expected.stderr)
    assert row["shared"] == str(len(safe["pair_id"]))
    assert float(rows(out)["plain", "logps/chosen"]["difference"]) == 0
    shown = capsys.readouterr().out
    assert "SafeDPO()" in shown
    assert "(before training)" in shown
    text = (out / "compare.md").read_text(encoding="utf-8")
    assert "Paired differences from plain" in text
    assert "`SafeDPO()`" in text
    assert (out / "compare.png").stat().st_size > 0


def test_the_baseline_may_be_any_of_them_by_name_or_folder(runs, tmp_path):
    differences = []
    for name in ("safe", runs[1]):
        compare(runs, out=str(tmp_path / "compared"), baseline=name)
        differences.append(float(rows(tmp_path / "compared")["plain", "rollouts/cost"]["difference"]))
    compare(runs, out=str(tmp_path / "compared"))
    forward = float(rows(tmp_path / "compared")["safe", "rollouts/cost"]["difference"])
    assert differences == pytest.approx([-forward, -forward])
    assert forward < 0
    with pytest.raises(SystemExit, match="'nobody' is not among the runs with a report: plain, safe"):
        compare(runs, out=str(tmp_path / "compared"), baseline="nobody")


def test_tensorboard_has_one_entry_a_run_with_what_differs_however_often_it_is_called(runs, tmp_path):
    out = tmp_path / "compared"
    for _ in range(2):
        compare(runs, out=str(out))
    folders = sorted(folder.name for folder in (out / "tensorboard").iterdir())
    assert folders == ["plain", "safe"]
    for folder, lr in (("plain", 1e-5), ("safe", 2e-5)):
        files = list((out / "tensorboard" / folder).rglob("events*"))
        events = EventAccumulator(str(out / "tensorboard" / folder))
        events.Reload()
        plugin = b"".join(m.plugin_data.content for m in events.summary_metadata.values())
        assert b"model.init_args.optimizer.init_args.lr" in plugin, files
        assert b"seed_everything" not in plugin
        assert np.float64(lr).tobytes() in plugin
        assert "after/logps/accuracies" in events.Tags()["scalars"]


def test_what_a_glob_brings_along_is_passed_over_and_a_run_without_report_is_named(runs, tmp_path, caplog):
    root = tmp_path / "runs"
    (root / "scorers").mkdir()
    (root / "notes.txt").write_text("buy milk", encoding="utf-8")
    (root / "compare").mkdir()
    (root / "broken" / "checkpoints").mkdir(parents=True)
    with caplog.at_level(logging.INFO, "lit_safe.commands.compare"):
        assert compare(sorted(map(str, root.iterdir())), out=str(root / "compare")) == 1
    passed = [message for message in caplog.messages if "skipped" in message]
    assert sorted(message.split()[0].rpartition("/")[2] for message in passed) == ["notes.txt", "scorers"]
    wanted = f"broken has no report.json: `python train.py report {root / 'broken'}` writes it"
    assert any(wanted in message for message in caplog.messages)
    assert {run for run, _ in rows(root / "compare")} == {"plain", "safe"}


def test_one_run_is_nothing_to_compare(runs, tmp_path):
    unfinished = tmp_path / "unfinished"
    (unfinished / "checkpoints").mkdir(parents=True)
    with pytest.raises(SystemExit) as refused:
        compare([runs[0], str(unfinished)], out=str(tmp_path / "compared"))
    assert str(refused.value) == (
        "compare: two runs with a report.json or a metrics.csv, or two evaluations, are needed, and 1 of 2 folders "
        f"have one; {unfinished} has no report.json: `python train.py report {unfinished}` writes it"
    )


def test_runs_on_other_pairs_are_refused_by_name(runs, tmp_path):
    elsewhere = evaluation()
    moved = Evaluation({**elsewhere.pairs, "pair_id": elsewhere.pairs["pair_id"] + 1000}, elsewhere.rollouts)
    folder = tmp_path / "runs" / "elsewhere"
    finish(folder, moved, "DPO")
    write_tables(folder, moved, moved)
    with pytest.raises(SystemExit, match="elsewhere and plain share no held-out pair"):
        compare([*runs, str(folder)], out=str(tmp_path / "compared"))


def turn(one: Evaluation, rows_n: np.ndarray) -> Evaluation:
    """The evaluation of the same pairs where the other response is chosen in some."""
    return one._replace(pairs=turned(one.pairs, rows_n))


def test_a_run_on_the_other_order_is_counted_in_the_baselines(runs, tmp_path, caplog):
    straight = evaluation(optimum(3.0))
    rows_n = np.arange(len(straight.pairs["pair_id"])) % 3 == 0
    folder = tmp_path / "runs" / "harmless"
    before = turn(evaluation(), rows_n)
    finish(folder, turn(straight, rows_n), "DPO", before=before, order="safer")
    compare([*runs, str(folder)], out=str(tmp_path / "compared"))
    found = rows(tmp_path / "compared")
    for measure in ("logps/accuracies", "logratios/margins", "logps/chosen", "logps/accuracies/safer"):
        for column in ("mean", "difference", "low", "high"):
            assert found["harmless", measure][column] == found["safe", measure][column], (measure, column)
    assert "order: helpful in plain, safer in harmless" in caplog.messages
    exchanged = f"order: {int(rows_n.sum())} of {len(rows_n)} shared pairs call the other response chosen in harmless"
    assert any(message.startswith(exchanged) for message in caplog.messages)
    assert exchanged in (tmp_path / "compared" / "compare.md").read_text(encoding="utf-8")


def test_one_policy_on_two_orders_of_real_pairs_differs_by_nothing():
    policy = aligned()
    policy.configure_model()
    found = []
    for order in ("helpful", "safer"):
        data = pairs(Fruit(120), order=order)
        data.setup("fit")
        found.append(evaluate(policy, data))
    brought = oriented([found[1]], found[0])
    assert brought.exchanged > 0
    assert brought.unclear == 0
    shared = differences(brought.evaluations[0], found[0])
    assert shared["logps/accuracies"].count == brought.shared
    assert all(abs(estimate.mean) < 1e-4 for estimate in shared.values())
    with pytest.raises(ValueError, match="have the other response as chosen"):
        differences(found[1], found[0])


def test_pairs_whose_order_nothing_tells_are_left_out_of_a_comparison_of_two_orders(tmp_path, caplog):
    one = evaluation()
    blind = {**one.pairs, **{name: np.full(len(one.pairs["pair_id"]), np.nan) for name in ("reward_margin",)}}
    blind["cost_chosen"] = np.where(np.arange(len(blind["pair_id"])) < 10, 1.0, blind["cost_chosen"])
    blind["cost_rejected"] = np.where(np.arange(len(blind["pair_id"])) < 10, 1.0, blind["cost_rejected"])
    unlabelled = one._replace(pairs=blind)
    folders = [
        finish(tmp_path / name, unlabelled, "DPO", before=unlabelled, order=order)
        for name, order in (("a", "helpful"), ("b", "safer"))
    ]
    compare(folders, out=str(tmp_path / "compared"))
    assert rows(tmp_path / "compared")["b", "logps/accuracies"]["shared"] == str(len(blind["pair_id"]) - 10)
    assert any("10 are left out: labels and lengths do not determine" in message for message in caplog.messages)


def test_runs_under_other_labels_are_refused_in_one_line(runs, tmp_path):
    one = evaluation()
    other = one._replace(pairs={**one.pairs, "cost_chosen": one.pairs["cost_chosen"] + 1})
    folder = finish(tmp_path / "runs" / "relabelled", other, "DPO")
    with pytest.raises(SystemExit, match=r"^compare: relabelled and plain: the labels differ: cost_chosen of pair"):
        compare([*runs, folder], out=str(tmp_path / "compared"))


def test_evaluations_of_runs_under_other_labels_are_compared(runs, tmp_path, caplog):
    one = evaluation()
    other = one._replace(pairs={**one.pairs, "cost_chosen": one.pairs["cost_chosen"] + 1})
    folder = finish(tmp_path / "runs" / "relabelled", other, "DPO")
    written(tmp_path / "runs", "plain", [0] * 10 + [1])
    written(tmp_path / "runs", "relabelled", [1] * 8 + [0] * 2 + [1])
    assert compare([runs[0], folder], out=str(tmp_path / "compared")) == 0
    text = (tmp_path / "compared" / "compare.md").read_text(encoding="utf-8")
    assert "Held-out pairs are not compared: relabelled and plain: the labels differ" in text
    assert "| -80.0 [" in text
    assert any("held-out pairs are not compared" in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("setting", "value", "gone"),
    [
        ("scorer", "Refusal", {"rollouts/unsafe", "rollouts/cost"}),
        ("scorer.digest", "bb", {"rollouts/unsafe", "rollouts/cost"}),
        ("scorer.units", "log_odds", {"rollouts/unsafe", "rollouts/cost"}),
        ("max_new_tokens", 64, {"rollouts/unsafe", "rollouts/tokens", "drift/forward_kl"}),
        ("temperature", 0.7, {"rollouts/unsafe", "rollouts/tokens", "drift/forward_kl"}),
        ("stop_ids", [2, 7], {"rollouts/unsafe", "rollouts/tokens", "drift/forward_kl"}),
        ("template", "77bc", set()),
        ("data seed", 1, set()),
        ("response seed", 1, set()),
    ],
)
def test_a_setting_that_differs_is_named_with_both_values(tmp_path, caplog, setting, value, gone):
    folders = [
        finish(tmp_path / "one", evaluation(), "DPO"),
        finish(tmp_path / "other", evaluation(optimum(2.0)), "DPO", **{setting: value}),
    ]
    compare(folders, out=str(tmp_path / "compared"))
    said = [message for message in caplog.messages if message.startswith(f"{setting}: ")]
    assert len(said) == 1
    assert said[0].startswith(f"{setting}: {SETTINGS[setting]} in one, {value} in other")
    assert said[0] in (tmp_path / "compared" / "compare.md").read_text(encoding="utf-8")
    found = rows(tmp_path / "compared")
    for measure in ("logps/accuracies", *gone):
        assert (found["other", measure]["difference"] == "nan") is (measure in gone), measure
        assert found["other", measure]["mean"] != "nan"


def test_runs_under_the_same_settings_are_compared_without_a_remark(runs, tmp_path, caplog):
    assert compare(runs, out=str(tmp_path / "compared")) == 0
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "Settings that differ" not in (tmp_path / "compared" / "compare.md").read_text(encoding="utf-8")


def test_a_report_of_an_earlier_version_is_read_and_what_it_does_not_record_is_named(runs, tmp_path, caplog):
    folder = tmp_path / "runs" / "old"
    finish(folder, evaluation(), "DPO")
    report = {"objective": {"name": "DPO", "text": "DPO()"}, "scorer": {"name": "Refusal", "card": None}, "seed": 3}
    write_json(folder / "report.json", report)
    assert compare([*runs, str(folder)], out=str(tmp_path / "compared")) == 0
    assert "data seed: 0 in plain, 3 in old" in caplog.messages
    assert any(message.startswith("scorer: TableCost in plain, Refusal in old; no diff") for message in caplog.messages)
    unknown = [message for message in caplog.messages if message.startswith("old does not record ")]
    assert len(unknown) == 1
    assert "max_new_tokens, order, response seed" in unknown[0]


@pytest.mark.parametrize(
    ("name", "text", "cause"),
    [
        ("report.json", "{}", "it lacks 'objective'"),
        ("report.json", '{"objective": "DPO"}', "indices must be"),
        ("report.json", '{"objective": {"text": ', "Expecting value"),
        ("pairs.csv", "pair_id,prompt_id\n1,2\n", "it lacks 'length_chosen'"),
        ("pairs.csv", "", "not enough values to unpack"),
        ("config.yaml", "a: [", "while parsing"),
    ],
)
def test_a_report_that_cannot_be_read_is_refused_in_one_line(runs, tmp_path, name, text, cause):
    folder = tmp_path / "runs" / "plain"
    (folder / name).write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit) as refused:
        compare(runs, out=str(tmp_path / "compared"))
    said = str(refused.value)
    assert said.startswith(f"compare: the report in {folder} cannot be read (")
    assert cause in said
    assert f"`python train.py report {folder}` writes it again" in said
    assert "\n" not in said


def test_runs_called_alike_keep_their_paths_below_the_folder_that_holds_them_all(tmp_path):
    twins = [finish(tmp_path / part / "dpo", evaluation(), "DPO") for part in ("a", "b")]
    compare(twins, out=str(tmp_path / "compared"))
    assert {run for run, _ in rows(tmp_path / "compared")} == {"a/dpo", "b/dpo"}


def test_runs_with_a_certificate_and_refusals_stand_on_two_axes(runs, tmp_path):
    share = {"mean": 0.2, "lower": 0.1, "upper": 0.3, "low": 0.1, "high": 0.3, "count": 50}
    findings = {"verdict": "HOLDS", "unsafe": None, "unsafe_share": share}
    certificate = {"findings": findings, "responses": {"count": 50}}
    (Path(runs[0]) / "certificate.json").write_text(json.dumps(certificate), encoding="utf-8")
    (Path(runs[0]) / "refusals.json").write_text(json.dumps({"after": share}), encoding="utf-8")
    compare(runs, out=str(tmp_path / "compared"))
    assert "## Two axes" in (tmp_path / "compared" / "compare.md").read_text(encoding="utf-8")
    assert (tmp_path / "compared" / "axes.png").is_file()


def test_the_command_line_takes_folders_as_a_shell_gives_them(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py"])
    main(["compare", *runs, "--out", str(tmp_path / "compared"), "--baseline", "safe"])
    assert float(rows(tmp_path / "compared")["safe", "logps/chosen"]["difference"]) == 0


def curves_of(folder, losses) -> str:
    """A run that wrote curves and no report."""
    folder.mkdir(parents=True)
    lines = ["step,time,train/loss,dual/cost", *(f"{step},0.0,{loss}," for step, loss in enumerate(losses, 1))]
    (folder / "metrics.csv").write_text("\n".join([*lines, f"{len(losses)},0.0,,-0.25", ""]), encoding="utf-8")
    return str(folder)


def test_runs_without_a_report_are_compared_by_their_curves(tmp_path, caplog, capsys):
    folders = [curves_of(tmp_path / "a", [0.7, 0.6, 0.5]), curves_of(tmp_path / "b", [0.7, 0.65])]
    out = tmp_path / "compared"
    assert compare(folders, out=str(out)) == 0
    advice = f"{folders[0]} has no report.json: `python train.py report {folders[0]}` writes it"
    assert f"only curves of {folders[0]} are compared: {advice}" in caplog.messages
    text = (out / "compare.md").read_text(encoding="utf-8")
    assert "| run | step | loss (nats) | estimated cost (cost units) |" in text
    assert "| a | 3 | 0.5 | -0.25 |" in text
    assert "| b | 2 | 0.65 | -0.25 |" in text
    with (out / "curves.csv").open(encoding="utf-8") as file:
        drawn = [row for row in csv.DictReader(file) if row["run"] == "b" and row["name"] == "train/loss"]
    assert [(row["step"], float(row["value"])) for row in drawn] == [("1", 0.7), ("2", 0.65)]
    assert (out / "curves.png").stat().st_size > 0
    assert not (out / "compare.csv").exists()
    assert "0.65" in capsys.readouterr().out


def test_a_run_without_a_report_stands_beside_those_that_have_one(runs, tmp_path):
    unfinished = curves_of(tmp_path / "runs" / "unfinished", [0.7, 0.6])
    assert compare([unfinished, *runs], out=str(tmp_path / "compared")) == 0
    assert {run for run, _ in rows(tmp_path / "compared")} == {"plain", "safe"}
    text = (tmp_path / "compared" / "compare.md").read_text(encoding="utf-8")
    assert "Paired differences from plain" in text
    assert "| unfinished | 2 | 0.6 | -0.25 |" in text
    with pytest.raises(SystemExit, match="'unfinished' is not among the runs with a report: plain, safe"):
        compare([unfinished, *runs], out=str(tmp_path / "compared"), baseline="unfinished")


@pytest.mark.parametrize(("text", "cause"), [("step,train/loss\n1,x\n", "could not convert"), ("loss\n1\n", "'step'")])
def test_curves_that_cannot_be_read_are_refused_in_one_line(tmp_path, text, cause):
    folders = [curves_of(tmp_path / "a", [0.7]), curves_of(tmp_path / "b", [0.7])]
    (tmp_path / "b" / "metrics.csv").write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit) as refused:
        compare(folders, out=str(tmp_path / "compared"))
    assert str(refused.value).startswith(f"compare: {tmp_path / 'b' / 'metrics.csv'} cannot be read (")
    assert cause in str(refused.value)
