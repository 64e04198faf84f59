"""Commands as a user types them, on invented pairs and a tiny model."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_safe.cli import SafeCLI, main

CONFIGS = Path(__file__).parents[2] / "configs"
CONFIGS_OF_A_RUN: list[str] = []  # in place of the world's
Run = Callable[..., SafeCLI]


def record(i: int) -> dict[str, Any]:
    answers = {"response_0": f"It is {i}, I think.", "response_1": f"No. {i}!"}
    labels = {"reward_0": 1.0, "reward_1": i % 2 * 2.0, "cost_0": -1.0 + i % 3, "cost_1": -0.5, "better": i % 2}
    return {"prompt": f"Which number is {i:03d}?", **answers, **labels}


def write(records: list[dict[str, Any]]) -> None:
    Path("pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")


def write_world() -> list[str]:
    """Write ``pairs.jsonl`` and ``run.yaml`` here; returns the words that name the configuration."""
    write([record(i) for i in range(60)])
    data = yaml.safe_load((CONFIGS / "data" / "scored.yaml").read_text(encoding="utf-8"))
    data["init_args"] |= {"pairs_per_step": 4, "micro_batch_pairs": 3, "max_length": 96}
    trainer = {"accelerator": "cpu", "max_steps": 3, "max_epochs": -1, "default_root_dir": "runs/x"}
    settings = {"init_args": {"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1.0e-3}}}}
    Path("run.yaml").write_text(yaml.safe_dump({"trainer": trainer, "model": settings, "data": data}), encoding="utf-8")
    return ["-c", str(CONFIGS / "base.yaml"), "-c", "run.yaml"]


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Types a command in a folder with ``pairs.jsonl`` and ``run.yaml``."""
    monkeypatch.chdir(tmp_path)
    configs = write_world()

    def run(command: str, *words: str) -> SafeCLI:
        monkeypatch.setattr(sys, "argv", ["train.py", command, *(CONFIGS_OF_A_RUN or configs), *words])
        return main()

    return run
