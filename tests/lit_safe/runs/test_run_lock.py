"""A run folder belongs to one live process, and only while it lives."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from lightning import Callback, LightningModule, Trainer

from lit_safe.runs import move_aside as moving
from lit_safe.runs import run_lock
from lit_safe.runs.loggers.metrics_csv import MetricsCSV
from lit_safe.runs.move_aside import move_aside
from lit_safe.runs.run_checkpoint import RunCheckpoint
from lit_safe.runs.run_folder import RunFolder
from lit_safe.runs.run_lock import RunFolderError, RunLock
from tests.lit_safe.line_world import BATCHES, Line

ROOT = Path(__file__).parents[3]
HOLD = """
import sys
from pathlib import Path
from lit_safe.runs.run_lock import RunLock
lock = RunLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path: Path):
    """Another process that holds the folder ``run``."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def fit(folder: Path, *callbacks: Callback, ckpt_path: Path | None = None, **options) -> None:
    Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=[MetricsCSV()],
        callbacks=[RunFolder(), *callbacks, RunCheckpoint()],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **{"max_epochs": 1, "limit_val_batches": 0, **options},
    ).fit(Line(), BATCHES, BATCHES, ckpt_path=ckpt_path)


def test_a_live_run_refuses_a_second_one_and_is_named(other: subprocess.Popen[str], tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(RunFolderError) as refused:
        RunLock(tmp_path / "run").acquire()
    message = str(refused.value)
    for word in (str(tmp_path / "run"), f"process {other.pid}", socket.gethostname(), "default_root_dir"):
        assert word in message
    assert "\n" not in message
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_killed_run_leaves_no_lock(other: subprocess.Popen[str], tmp_path: Path) -> None:
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert (tmp_path / "run" / run_lock.LOCK).exists()
    lock = RunLock(tmp_path / "run")
    lock.acquire()
    assert json.loads((tmp_path / "run" / run_lock.HOLDER).read_text(encoding="utf-8"))["process"] == os.getpid()
    lock.release()


def test_a_fit_and_a_resume_in_a_live_runs_folder_are_refused_before_anything_moves(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    fit(tmp_path / "run")
    request.getfixturevalue("other")
    before = sorted(tmp_path.rglob("*"))
    for checkpoint in (None, tmp_path / "run" / "checkpoints" / "last.ckpt"):
        with pytest.raises(RunFolderError, match="the folder of a live run"):
            fit(tmp_path / "run", ckpt_path=checkpoint, max_epochs=2)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_finished_run_leaves_no_file_of_its_lock_and_an_earlier_one_none_either(tmp_path: Path) -> None:
    for _ in range(2):
        fit(tmp_path / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.1"]
    assert not [path for path in tmp_path.rglob("*") if path.name in run_lock.FILES]


class Second(Callback):
    """Begins another run in the same folder in the middle of this one."""

    def on_train_batch_end(self, trainer: Trainer, *args: object) -> None:
        with pytest.raises(RunFolderError, match=f"process {os.getpid()}"):
            RunLock(Path(trainer.default_root_dir)).acquire()


def test_the_lock_is_on_the_new_folder_once_the_earlier_run_has_moved(tmp_path: Path) -> None:
    for _ in range(2):
        fit(tmp_path / "run", Second())
    assert (tmp_path / "run.1").exists()


class Fails(Callback):
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        raise ArithmeticError


def test_a_run_that_fails_gives_its_folder_free(tmp_path: Path) -> None:
    with pytest.raises(ArithmeticError):
        fit(tmp_path / "run", Fails())
    fit(tmp_path / "run")


def test_a_folder_that_was_made_for_nothing_goes_again(tmp_path: Path) -> None:
    lock = RunLock(tmp_path / "runs" / "x")
    lock.acquire()
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match=r"file/run cannot be written \(Not a directory\)"):
        fit(tmp_path / "file" / "run")
    fit(tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    (tmp_path / "run" / "tensorboard").touch()  # in the place of a folder
    with pytest.raises(RunFolderError, match=r"tensorboard cannot be written"):
        RunFolder().enter(Trainer(default_root_dir=tmp_path / "run", logger=False), "fit", str(last))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_read_only_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o500)
    with pytest.raises(RunFolderError, match="Permission denied"):
        RunLock(tmp_path / "run").acquire()


def test_a_symbolic_link_keeps_its_place_and_its_contents_move(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    for _ in range(3):
        fit(tmp_path / "run")
    assert (tmp_path / "run").is_symlink()
    assert sorted(p.name for p in (tmp_path / "disk").iterdir()) == [
        "checkpoints",
        "earlier.1",
        "earlier.2",
        "metrics.csv",
    ]
    assert (tmp_path / "disk" / "earlier.1" / "checkpoints" / "last.ckpt").exists()


def test_a_name_without_room_for_a_number_keeps_its_place(tmp_path: Path) -> None:
    folder = tmp_path / ("n" * 255)
    for _ in range(2):
        fit(folder)
    assert (folder / "earlier.1" / "metrics.csv").exists()


def test_a_mount_point_keeps_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    monkeypatch.setattr(moving.os.path, "ismount", lambda path: path == tmp_path / "run")
    assert move_aside(tmp_path / "run") == tmp_path / "run" / "earlier.1"
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["earlier.1"]


@pytest.mark.parametrize("name", ["runs/a::b", "s3://bucket/run"])
def test_a_name_that_lightning_reads_as_an_address_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunFolderError, match="a local folder"):
        RunFolder().enter(Trainer(default_root_dir=name, logger=False), "fit")
    assert list(tmp_path.iterdir()) == []
