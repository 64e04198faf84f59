"""``train.py fit`` told to stop from outside, on one rank and on two: it continues to the same bits."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.lit_safe.typed_world import write_world

ROOT = Path(__file__).parents[3]

SENDER = """
import os, signal
from lightning import Callback

class Sender(Callback):
    def __init__(self, hook: str, step: int, rank: int = 0, number: int = 15) -> None:
        self.step, self.rank, self.number = step, rank, number
        setattr(self, hook, self._send)
    def _send(self, trainer, *args):
        if trainer.global_rank == self.rank and trainer.global_step == self.step:
            self.rank = -1
            os.kill(os.getpid(), self.number)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_world()
    (tmp_path / "sender.py").write_text(SENDER, encoding="utf-8")
    return tmp_path


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{folder}", "OMP_NUM_THREADS": "1"}
    configs = ["-c", str(ROOT / "configs" / "base.yaml"), "-c", "run.yaml"]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), "fit", *configs, *words],
        cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8",
        preexec_fn=from_a_terminal,
    )  # fmt: skip


def from_a_terminal() -> None:
    """A shell starts background commands with SIGINT ignored, and a process inherits that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        errors = process.communicate(timeout=240)[1]
    finally:
        process.kill()
    return process.returncode, errors


def weights(run: Path) -> dict[str, torch.Tensor]:
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


TWO = ("--trainer.devices", "2", "--trainer.strategy", "ddp")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("ranks", "rank", "number"), [((), 0, 2), (TWO, 0, 15), (TWO, 1, 15), (TWO, 1, 2)])
def test_a_rank_told_to_stop_stops_them_all_and_the_command_it_names_finishes_the_run(
    ranks: tuple[str, ...], rank: int, number: int, folder: Path
) -> None:
    sender = ["--trainer.callbacks+=sender.Sender", "--trainer.callbacks.hook", "on_train_batch_start"]
    sender += [
        "--trainer.callbacks.step",
        "1",
        "--trainer.callbacks.rank",
        str(rank),
        "--trainer.callbacks.number",
        str(number),
    ]
    status, errors = finish(start(folder, *ranks, *sender))
    assert status == 128 + number, errors
    [line] = [line for line in errors.splitlines() if "stopped by" in line]
    assert "Traceback" not in errors
    said = re.search(r"Continue with: python \S+ fit (.*)", line)
    assert said is not None
    status, errors = finish(start(folder, *shlex.split(said[1])))
    assert status == 0, errors
    status, errors = finish(start(folder, *ranks, "--trainer.default_root_dir", "runs/whole"))
    assert status == 0, errors
    stopped, whole = weights(folder / "runs" / "x"), weights(folder / "runs" / "whole")
    assert all(torch.equal(stopped[name], value) for name, value in whole.items())


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("ranks", "rank"), [((), 0), (TWO, 0), (TWO, 1)])
def test_before_the_first_step_all_ranks_end_at_once(ranks: tuple[str, ...], rank: int, folder: Path) -> None:
    sender = ["--trainer.callbacks+=sender.Sender", "--trainer.callbacks.hook", "on_train_start"]
    sender += ["--trainer.callbacks.step", "0", "--trainer.callbacks.rank", str(rank)]
    status, errors = finish(start(folder, *ranks, *sender))
    assert status == 143, errors
    assert errors.count("run the same command to start again") == 1
    assert not (folder / "runs").exists()


@pytest.mark.slow
def test_a_second_fit_in_a_live_runs_folder_is_refused_by_name(folder: Path) -> None:
    with start(folder, "--trainer.max_steps", "-1", "--trainer.max_epochs", "100000") as live:
        assert live.stderr is not None
        while "steps" not in live.stderr.readline():
            pass
        status, errors = finish(start(folder))
        live.send_signal(signal.SIGTERM)
        live.communicate()
        assert live.returncode == 143
    assert status == 1
    assert re.search(rf"^error: runs/x is the folder of a live run, process {live.pid} of .*$", errors, re.MULTILINE)
    assert "Traceback" not in errors
