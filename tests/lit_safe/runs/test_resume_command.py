"""``train.py fit`` on a real (tiny) language model with rollouts, killed, and continued with ``--ckpt_path``."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

ROOT = Path(__file__).parents[3]

KILLER = """
import os, signal
from collections.abc import Sequence
import torch
from lightning import Callback
from lit_safe.hashing import uniform

class Dice:
    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> torch.Tensor:
        return torch.tensor([uniform(text) - 0.4 for text in responses])

class Killer(Callback):
    def __init__(self, hook: str, count: int) -> None:
        self.hook, self.left = hook, count
    def _pass_by(self, hook):
        self.left -= hook == self.hook
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    def on_train_batch_end(self, *args):
        self._pass_by("step")
    def on_train_epoch_end(self, *args):
        self._pass_by("dual")
"""


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{folder}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "fit", "-c", str(folder / "run.yaml"), *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k != "time" and "/perf/" not in k} for row in csv.DictReader(file)]


def weights_and_optimizer(folder: Path) -> tuple[dict[str, torch.Tensor], Any]:
    stored = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return {k: v for k, v in stored["state_dict"].items() if isinstance(v, torch.Tensor)}, stored["optimizer_states"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pairs = [
        {"prompt": f"Name thing {i}.", "response_0": f"Thing {i}, I think.", "response_1": f"It is {i}!"}
        | {"reward_0": i % 3, "reward_1": i % 2, "cost_0": i % 5 - 2.5, "cost_1": i % 4 - 1.5}
        for i in range(60)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    (tmp_path / "killer.py").write_text(KILLER, encoding="utf-8")
    base = yaml.safe_load((ROOT / "configs" / "base.yaml").read_text(encoding="utf-8"))
    base["trainer"] |= {"accelerator": "cpu", "max_epochs": 2, "val_check_interval": 3}
    base["checkpoint"] = {"every_n_steps": 2}
    configs = ROOT / "configs"
    options = base["model"]["init_args"]
    options["pair"] = str(configs / "model" / "tiny.yaml")
    options["objective"] = str(configs / "objective" / "c_dpo.yaml")
    options["optimizer"]["init_args"]["lr"] = 1e-3
    base["data"] = yaml.safe_load((configs / "data" / "scored.yaml").read_text(encoding="utf-8"))
    base["data"]["init_args"]["sources"][0]["init_args"]["path"] = str(tmp_path / "pairs.jsonl")
    base["data"]["init_args"] |= {"pairs_per_step": 4, "micro_batch_pairs": 3, "max_length": 96}
    rollout = {"cost": {"class_path": "killer.Dice"}, "prompts": 3, "max_new_tokens": 6}
    estimator = {"class_path": "lit_safe.constraint.costs.rollout.RolloutCost", "init_args": rollout}
    base["dual"] = {"lr": 0.5, "limit": -0.2, "estimator": estimator}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(base), encoding="utf-8")
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_command_continues_a_run_killed_twice_to_the_bit(folder: Path) -> None:
    whole, killed = folder / "whole", folder / "killed"
    done = command(folder, "--trainer.default_root_dir", str(whole))
    assert done.returncode == 0, done.stderr

    words = ["--trainer.default_root_dir", str(killed)]
    for hook, count in (("dual", 1), ("step", 5)):
        death = ("--trainer.callbacks.hook", hook, "--trainer.callbacks.count", str(count))
        done = command(folder, *words, "--trainer.callbacks+=killer.Killer", *death)
        assert done.returncode == -9, done.stderr
        words[2:] = ["--ckpt_path", str(killed / "checkpoints" / "last.ckpt")]

    done = command(folder, *words)
    assert done.returncode == 0, done.stderr
    assert rows(killed) == rows(whole)
    (weights, (optimizer,)), (whole_weights, (whole_optimizer,)) = map(weights_and_optimizer, (killed, whole))
    assert weights.keys() == whole_weights.keys()
    assert all(torch.equal(weights[name], whole_weights[name]) for name in weights)
    assert weights["multiplier"] > 0
    for index, state in whole_optimizer["state"].items():
        assert all(torch.equal(optimizer["state"][index][name], value) for name, value in state.items())
