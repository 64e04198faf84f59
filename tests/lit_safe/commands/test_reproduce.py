"""The command ``reproduce``: it tells the plan, runs it, continues, and writes the report of what is there."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from data.oracle.run import main as study
from data.oracle.study.inputs import SFT
from lit_safe.commands import reproduce as module
from lit_safe.commands.reproduce import reproduce
from lit_safe.errors.message import SettingError
from lit_safe.reproduction.plan import ORACLE_METHODS
from lit_safe.runs.run_lock import RunLock
from tests.lit_safe.reproduction.test_reproduction_measured import HALVES, write_oracle, write_run


class Commands:
    """In place of our commands: records the words, leaves what ``leave`` writes, and ends with ``status``."""

    def __init__(self, status: int = 0) -> None:
        self.status = status
        self.words: list[tuple[str, ...]] = []

    def __call__(self, words: Sequence[str]) -> int:
        self.words.append(tuple(words))
        folder = Path(words[words.index("--folder") + 1])
        if words[0] == "oracle":
            for k, name in enumerate(ORACLE_METHODS.values()):
                if not (folder / name).exists():
                    write_oracle(folder / name / "seed_0", HALVES + 0.01 * k * np.array([[1, -1, 0]]), 1.0)
        elif not folder.exists():
            write_run(folder / "dpo_helpful", [1, 1, -1], [2, 2, -1])
        return self.status


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Commands:
    commands = Commands()
    monkeypatch.setattr(module, "run_command", commands)
    return commands


def test_the_oracle_scale_tells_its_plan_runs_it_and_reports(
    run: Commands, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert reproduce("oracle", str(tmp_path), [0]) == 0
    told = [record.message for record in caplog.records]
    plan = next(k for k, line in enumerate(told) if "in all" in line)
    assert plan < next(k for k, line in enumerate(told) if line.startswith("step 1 of 1"))
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    for name in ("SFT", "DPO-HARMLESS", "SafeDPO, Δ = 0", "C-DPO λ = 0.4"):
        assert f"| {name} |" in text
    assert f"`lit-safe {' '.join(run.words[0])}`" in text


def test_a_real_scale_runs_one_pipeline_a_seed_and_stops_at_the_first_failure(run: Commands, tmp_path: Path) -> None:
    assert reproduce("135m", str(tmp_path), [0, 1]) == 0
    assert [words[:3] for words in run.words] == [("stages", "-c", str(tmp_path / f"seed_{k}.yaml")) for k in (0, 1)]
    assert "| DPO-HELPFUL |" in (tmp_path / "report.md").read_text(encoding="utf-8")
    run.status, run.words = 7, []
    assert reproduce("135m", str(tmp_path), [0, 1]) == 7, "the same command continues"
    assert len(run.words) == 1


def test_only_the_plan_writes_nothing_and_only_the_report_runs_nothing(run: Commands, tmp_path: Path) -> None:
    assert reproduce("7b", str(tmp_path / "x"), only="plan") == 0
    assert not (tmp_path / "x").exists()
    write_run(tmp_path / "y" / "seed_0" / "dpo_helpful", [1], [2], (1,))
    assert reproduce("7b", str(tmp_path / "y"), only="report") == 0
    assert (tmp_path / "y" / "report.md").exists()
    assert run.words == []


def test_without_a_finished_run_the_report_says_so(
    run: Commands, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert reproduce("7b", str(tmp_path), only="report") == 0
    assert "nothing was measured yet" in caplog.text


def test_a_folder_in_use_and_wrong_settings_are_refused(run: Commands, tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    lock.acquire()
    try:
        with pytest.raises(SystemExit, match="--folder"):
            reproduce("oracle", str(tmp_path))
    finally:
        lock.release()
    with pytest.raises(SettingError, match="plan or report"):
        reproduce("oracle", str(tmp_path), only="everything")
    with pytest.raises(SettingError, match="options are of the oracle study"):
        reproduce("7b", str(tmp_path), options=["--prompts", "4"])
    assert run.words == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_oracle_scale_works_with_real_runs_of_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The study's own command, in this process, with a reference that already writes texts of different cost."""
    monkeypatch.chdir(tmp_path)
    short = ("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1")
    monkeypatch.setattr(
        "data.oracle.study.inputs.SFT", (*SFT, "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "60")
    )
    monkeypatch.setattr(module, "run_command", lambda words: study(words[1:]))
    options = ["--prompts", "2", "--workers", "1", "--options", *short]
    assert reproduce("oracle", "runs/here", [0], options=options) == 0
    text = Path("runs/here/report.md").read_text(encoding="utf-8")
    assert "orderings hold at this scale" in text
    for name in ("DPO-HARMLESS", "DPO-SAFEBETTER", "SafeDPO", "C-DPO λ = 1"):
        assert f"| {name} |" in text
