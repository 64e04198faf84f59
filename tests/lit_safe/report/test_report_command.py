"""``report`` as a user types it: what the end of a run lacks is written later, to the same numbers."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from lit_safe.cli import main
from lit_safe.runs.checkpoints import load_checkpoint

CONFIGS = Path(__file__).parents[3] / "configs"
AWAY = Path("scorer-is-away")


class Letters:
    """A cost function that cannot work while a file lies in the working directory."""

    calls = 0

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        type(self).calls += 1
        if AWAY.exists() and type(self).calls > 1:
            raise FileNotFoundError("scorers/mine/card.json")
        return torch.tensor([len(text) % 5 - 2.5 for text in responses])


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Types a command in a folder with ``pairs.jsonl`` and ``run.yaml``; gives its exit status."""
    monkeypatch.chdir(tmp_path)
    rows = [
        {"prompt": f"Which number is {i:03d}?", "response_0": f"It is {i}, I think.", "response_1": f"No. {i}!"}
        | {"reward_0": 1.0, "reward_1": i % 2 * 2.0, "cost_0": -1.0 + i % 3, "cost_1": -0.5, "better": i % 2}
        for i in range(40)
    ]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    base = yaml.safe_load((CONFIGS / "base.yaml").read_text(encoding="utf-8"))
    base["trainer"] |= {"accelerator": "cpu", "max_steps": 2, "max_epochs": -1, "default_root_dir": "runs/x"}
    watch = {"cost": {"class_path": f"{__name__}.Letters"}, "prompts": 2, "max_new_tokens": 4, "pairs": 8}
    base["trainer"]["callbacks"] = [{"class_path": "lit_safe.report.before_after.BeforeAfter", "init_args": watch}]
    base["model"]["init_args"] |= {"objective": str(CONFIGS / "objective" / "dpo.yaml")}
    base["model"]["init_args"]["pair"] = str(CONFIGS / "model" / "tiny.yaml")
    base["data"] = yaml.safe_load((CONFIGS / "data" / "scored.yaml").read_text(encoding="utf-8"))
    base["data"]["init_args"] |= {"pairs_per_step": 4, "micro_batch_pairs": 3, "max_length": 96}
    Path("run.yaml").write_text(yaml.safe_dump(base), encoding="utf-8")
    monkeypatch.setattr(Letters, "calls", 0)

    def run(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["train.py", *words])
        try:
            main()
        except SystemExit as error:
            return int(str(error.code))
        return 0

    return run


def numbers(run: str) -> Any:
    found = json.loads((Path(run) / "report.json").read_text(encoding="utf-8"))
    return found["metrics"], found["limit"], found["training"]["steps"]


def test_a_report_that_failed_is_written_later_to_the_numbers_of_a_run_that_did_not_fail(
    typed: Callable[..., int], caplog: pytest.LogCaptureFixture
) -> None:
    AWAY.touch()
    assert typed("fit", "-c", "run.yaml") == 1
    assert "no report (FileNotFoundError: scorers/mine/card.json)" in caplog.text
    assert not Path("runs/x/report.md").exists()
    before = load_checkpoint("runs/x/checkpoints/last.ckpt")
    assert before["global_step"] == 2
    config = Path("runs/x/config.yaml").read_text(encoding="utf-8")
    assert typed("report", "runs/x") == 1  # still away, and said in one line again
    AWAY.unlink()
    assert typed("report", "runs/x") == 0
    assert Path("runs/x/report.md").read_text(encoding="utf-8").startswith("**Limit: undecided.**")
    assert load_checkpoint("runs/x/checkpoints/last.ckpt")["global_step"] == 2
    assert [path.name for path in Path("runs").iterdir()] == ["x"]
    assert Path("runs/x/config.yaml").read_text(encoding="utf-8") == config
    assert [path.name for path in Path("runs/x").glob("config*")] == ["config.yaml"]

    assert typed("fit", "-c", "run.yaml", "--trainer.default_root_dir", "runs/whole") == 0
    assert numbers("runs/x") == numbers("runs/whole")

    whole = numbers("runs/whole")
    Path("runs/whole/report.json").unlink()
    assert typed("compare", "runs/x", "runs/whole", "--out", "compared") == 0
    assert "only curves of runs/whole are compared" in caplog.text
    assert not Path("compared/compare.csv").exists()
    assert typed("compare", "runs/x", "runs/whole", "--out", "compared", "--make_reports", "true") == 0
    assert numbers("runs/whole") == whole
    assert Path("compared/compare.csv").exists()


def test_a_report_whose_run_went_on_is_outdated(typed: Callable[..., int], caplog: pytest.LogCaptureFixture) -> None:
    assert typed("fit", "-c", "run.yaml") == 0
    stale = json.loads(Path("runs/x/report.json").read_text(encoding="utf-8"))
    stale["training"]["steps"] = 1
    Path("runs/x/report.json").write_text(json.dumps(stale), encoding="utf-8")
    assert typed("report", "runs/x", "runs/nowhere") == 1
    assert numbers("runs/x")[2] == 2
    assert [r.message for r in caplog.records if r.levelname == "ERROR"] == [
        "runs/nowhere: there is no runs/nowhere/config.yaml: this is not a run folder, or the run stopped too early "
        "for a report"
    ]
