"""The scripts of docs/cluster/ are shell, and the command line takes their commands."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lit_safe.cli import main

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "docs" / "cluster").iterdir())
HERE = ["--trainer.accelerator", "cpu", "--trainer.strategy", "auto", "--trainer.devices", "1"]
HERE += ["--trainer.precision", "32-true", "--trainer.num_nodes", "1"]


def command_of(script: Path) -> list[str]:
    """The words after ``train.py fit``."""
    text = re.sub(r"\\\n", " ", script.read_text(encoding="utf-8"))
    (line,) = (line for line in text.splitlines() if "train.py fit -c" in line)
    return shlex.split(line.partition("train.py fit")[2])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_shell_and_its_command_is_taken(
    script: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    words = command_of(script)
    assert words[-2:] == ["--ckpt_path", "auto"]
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.chdir(tmp_path)
    built = main([*words[:-2], *HERE], run=False)
    assert built.trainer.default_root_dir == "runs/c_dpo_7b"
    assert next(c for c in built.trainer.callbacks if type(c).__name__ == "RunCheckpoint").keep_last == 2


def test_the_machines_and_processes_of_a_script_agree_with_its_command() -> None:
    for script in SCRIPTS:
        text, words = script.read_text(encoding="utf-8"), command_of(script)
        nodes, each = (words[words.index(f"--trainer.{name}") + 1] for name in ("num_nodes", "devices"))
        assert re.search(rf"--(nodes=|nnodes ){nodes}\b", text)
        assert re.search(rf"--(ntasks-per-node=|nproc_per_node ){each}\b", text)


def test_the_requeue_follows_the_status_of_the_signal_that_the_script_asks_for() -> None:
    text = (ROOT / "docs" / "cluster" / "slurm_fsdp2.sbatch").read_text(encoding="utf-8")
    assert "--signal=USR1@" in text
    assert '"$status" -eq 138' in text  # 128 + SIGUSR1
