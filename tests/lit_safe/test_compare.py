import csv
import logging

import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_safe.cli import main
from lit_safe.commands.compare import compare
from lit_safe.evaluation import Evaluation, evaluate
from lit_safe.report.tables import write_json, write_tables
from lit_safe.statistics import clustered_mean
from tests.lit_safe.dual_world import TableCost, optimum
from tests.lit_safe.held_out_world import HeldOut, module


def evaluation(policy_PK: torch.Tensor | None = None) -> Evaluation:
    return evaluate(module(policy_PK), HeldOut(), cost=TableCost(), samples_per_prompt=3)


def finish(folder, after: Evaluation, objective: str, lr: float = 1e-5) -> str:
    folder.mkdir(parents=True)
    write_tables(folder, evaluation(), after)
    write_json(folder / "report.json", {"objective": {"name": objective, "text": f"{objective}()"}})
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
    with pytest.raises(ValueError, match="'nobody' is not among the runs with a report: plain, safe"):
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
    passed = [message for message in caplog.messages if "passed over" in message]
    assert sorted(message.split()[0].rpartition("/")[2] for message in passed) == ["notes.txt", "scorers"]
    assert any("broken has no report.json" in message for message in caplog.messages)
    assert {run for run, _ in rows(root / "compare")} == {"plain", "safe"}


def test_one_run_is_nothing_to_compare(runs, tmp_path):
    with pytest.raises(ValueError, match=r"two runs with a report\.json, found 1 of 2 folders"):
        compare([runs[0], str(tmp_path)], out=str(tmp_path / "compared"))


def test_runs_on_other_pairs_are_refused_by_name(runs, tmp_path):
    elsewhere = evaluation()
    moved = Evaluation({**elsewhere.pairs, "pair_id": elsewhere.pairs["pair_id"] + 1000}, elsewhere.rollouts)
    folder = tmp_path / "runs" / "elsewhere"
    finish(folder, moved, "DPO")
    write_tables(folder, moved, moved)
    with pytest.raises(ValueError, match="elsewhere and plain share no held-out pair"):
        compare([*runs, str(folder)], out=str(tmp_path / "compared"))


def test_runs_called_alike_keep_their_paths(tmp_path):
    twins = [finish(tmp_path / part / "dpo", evaluation(), "DPO") for part in ("a", "b")]
    compare(twins, out=str(tmp_path / "compared"))
    assert {run for run, _ in rows(tmp_path / "compared")} == set(twins)


def test_the_command_line_takes_folders_as_a_shell_gives_them(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py"])
    main(["compare", *runs, "--out", str(tmp_path / "compared"), "--baseline", "safe"])
    assert float(rows(tmp_path / "compared")["safe", "logps/chosen"]["difference"]) == 0
