"""``python train.py fit`` and its like, as a user types them, on invented pairs."""

import logging
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml

from lit_safe.cli import COMMANDS, SafeCLI, main
from lit_safe.objectives import DPO, ConstrainedDPO, SafeDPO
from tests.lit_safe.typed_world import CONFIGS, Run, record, typed, write

__all__ = ["typed"]  # a fixture


def objective(name: str) -> list[str]:
    return ["--model.objective", str(CONFIGS / "objective" / f"{name}.yaml")]


def trained(cli: SafeCLI) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in cli.model.parameters()])


def test_one_flag_swaps_the_objective_of_a_fit_and_every_rerun_keeps_what_was_there(typed: Run) -> None:
    runs = [typed("fit", *objective(name)) for name in ("dpo", "c_dpo", "safe_dpo")]
    assert [type(run.model.objective) for run in runs] == [DPO, ConstrainedDPO, SafeDPO]
    assert all(run.trainer.global_step == 3 for run in runs)
    assert len({tuple(trained(run)[:2000].tolist()) for run in runs}) == 3
    folders = [Path("runs/x.1"), Path("runs/x.2"), Path("runs/x")]
    assert sorted(Path("runs").iterdir()) == sorted(folders)
    for folder, run in zip(folders, runs, strict=True):
        stored = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        fitted = run.model.state_dict()
        assert all(torch.equal(v, fitted[k]) for k, v in stored["state_dict"].items() if k.startswith("pair.policy."))
        resolved = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["model"]["init_args"][
            "objective"
        ]
        assert resolved["class_path"].endswith(type(run.model.objective).__name__)
        assert (folder / "metrics.csv").read_text(encoding="utf-8").count("\n") >= 4
        assert list((folder / "tensorboard").iterdir())


@pytest.mark.slow
def test_a_checkpoint_never_overrides_what_was_typed(typed: Run, caplog: pytest.LogCaptureFixture) -> None:
    first = typed("fit", *objective("dpo"))
    last = ["--ckpt_path", "last"]
    before = Path("runs/x/checkpoints/last.ckpt").read_bytes()
    with pytest.raises(SystemExit, match=r"model.init_args.objective.class_path: checkpoint .*DPO.*, typed .*SafeDPO"):
        typed("fit", *last, *objective("safe_dpo"), "--trainer.max_steps", "5")
    with pytest.raises(SystemExit, match=r"model.init_args.optimizer.init_args.lr: checkpoint 0.001, typed 0.5"):
        typed("fit", *last, *objective("dpo"), "--model.optimizer.lr", "0.5", "--trainer.max_steps", "5")
    assert Path("runs/x/checkpoints/last.ckpt").read_bytes() == before

    with caplog.at_level(logging.INFO):
        validated = typed("validate", *last, *objective("safe_dpo"))
    assert "was made with other settings; typed ones are used" in caplog.text
    assert "model.init_args.objective.class_path: checkpoint" in caplog.text
    assert isinstance(validated.model.objective, SafeDPO)
    assert torch.equal(trained(validated), trained(first))
    listed = dict(re.findall(r"(eval/\S+) +(\S+)", caplog.text))
    assert {"eval/loss", "eval/rewards/accuracies", "eval/pairs/dropped"} <= set(listed)

    continued = typed("fit", *last, *objective("dpo"), "--trainer.max_steps", "5")
    assert continued.trainer.global_step == 5
    assert not Path("runs/x.1").exists()
    steps = [line.split(",")[0] for line in Path("runs/x/metrics.csv").read_text(encoding="utf-8").splitlines()]
    assert [step for step in dict.fromkeys(steps) if step.isdigit() and step != "0"] == ["1", "2", "3", "4", "5"]


def test_a_row_that_cannot_be_used_stops_the_fit_and_is_named(typed: Run) -> None:
    rows = [record(i) for i in range(60)]
    write([*rows[:7], {**rows[7], "response_1": None}, *rows[8:]])
    with pytest.raises(ValueError, match=r"row pairs.jsonl:8, column 'response_1'"):
        typed("fit")
    write([*rows[:7], {**rows[7], "cost_0": "high"}, *rows[8:]])
    with pytest.raises(ValueError, match=r"row pairs.jsonl:8, column 'cost_0'"):
        typed("fit")
    assert not Path("runs").exists()


def test_a_label_that_the_objective_needs_and_the_data_lack_stops_the_fit_and_is_named(typed: Run) -> None:
    data = yaml.safe_load(Path("run.yaml").read_text(encoding="utf-8"))["data"]
    data["init_args"]["sources"][0]["init_args"]["better"] = "better"
    data["init_args"]["annotator"] = {"class_path": "data.annotators.flags.Flags"}
    Path("flags.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    with pytest.raises(ValueError, match=r"row pairs.jsonl:\d+, column chosen cost .*: not known.*needs 'flags'"):
        typed("fit", "--data", "flags.yaml", *objective("safe_dpo"))
    assert not Path("runs").exists()


def test_help_lists_every_command_with_its_summary(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    for command in ("fit", "validate", "test", "predict", *COMMANDS):
        assert any(re.match(rf" +{command} +\w.* \w", line) for line in lines), command


def test_help_of_fit_is_the_docstrings(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "Moves the module's multiplier towards a cost limit, once at the end of each complete training epoch",
        "--dual.limit+ LIMIT Largest acceptable E[cost], in cost units; a list gives each constraint its own.",
        "Where E[cost] comes from; null estimates nothing.",
        "--ckpt_path",
    ):
        assert words in text, words
    with pytest.raises(SystemExit):
        main(["fit", "--model.help", "lit_safe.training.module.PreferenceAlignment"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Start value(s) of the dual variable, one per constraint, in nats per cost unit, >= 0." in text


@pytest.mark.slow
def test_doctor_and_export_build_what_the_yaml_names(typed: Run, capsys: pytest.CaptureFixture[str]) -> None:
    typed("doctor", *objective("c_dpo"))
    assert "FAILED" not in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        typed("doctor", *objective("c_dpo"), "--data.micro_batch_pairs", "1000000000")
    assert stopped.value.code == 1
    assert re.search(r"memory +│ FAILED", capsys.readouterr().out)

    fitted = typed("fit", *objective("dpo"))
    typed("export", *objective("dpo"), "--ckpt_path", "runs/x/checkpoints/last.ckpt", "--out", "out")
    assert list(Path("out").glob("*.safetensors"))
    assert "optimizer steps: 3" in Path("out/README.md").read_text(encoding="utf-8")
    with pytest.raises(FileExistsError, match="not empty"):
        typed("export", *objective("dpo"), "--ckpt_path", "runs/x/checkpoints/last.ckpt", "--out", "out")
    assert fitted.trainer.global_step == 3


@pytest.mark.parametrize("command", ["export", "sample"])
def test_a_damaged_checkpoint_is_one_line_of_every_command(typed: Run, command: str) -> None:
    Path("damaged.ckpt").write_bytes(b"PK but not a checkpoint")
    with pytest.raises(SystemExit, match=r"^damaged\.ckpt is not a checkpoint, or only part of one$"):
        typed(command, *objective("dpo"), "--ckpt_path", "damaged.ckpt", "--out", "out")
    assert not Path("out").exists()
