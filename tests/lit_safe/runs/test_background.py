"""Checkpoints written while training goes on are those of a run that waits, and their errors are not lost."""

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.plugins import AsyncCheckpointIO

from lit_safe.runs import run_checkpoint
from lit_safe.runs.background import BackgroundWriter, snapshot
from lit_safe.runs.checkpoints import CheckpointError, load_checkpoint, write_checkpoint
from lit_safe.runs.run_checkpoint import RunCheckpoint
from tests.lit_safe.constraint.test_dual import KillAt, Killed
from tests.lit_safe.runs.test_checkpoints import LAST, fit


def test_every_file_is_that_of_a_run_that_waits_though_steps_are_taken_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(tmp_path / "waits", RunCheckpoint(every_n_steps=1, keep_last=9))
    stepped, begun = threading.Event(), []

    def slow(checkpoint: Any, path: Path) -> None:
        begun.append(checkpoint["global_step"])
        assert stepped.wait(20), "the next step is taken before this file is written"
        stepped.clear()
        write_checkpoint(checkpoint, path)

    def step(run: Any, *_: Any) -> None:
        if begun and run.global_step > begun[-1]:
            stepped.set()

    monkeypatch.setattr(run_checkpoint, "write_checkpoint", slow)
    callback = LambdaCallback(on_train_batch_end=step, on_train_epoch_end=lambda *_: stepped.set())
    saves = RunCheckpoint(every_n_steps=2, keep_last=9, background=True)
    fit(tmp_path / "goes on", saves, callback)
    names = {path.name for path in (tmp_path / "goes on" / "checkpoints").iterdir()}
    assert {"last.ckpt", "step-2.ckpt", "step-3.ckpt", "step-6.ckpt"} <= names
    assert not [name for name in names if name.endswith(".tmp")]
    for name in names:
        one, other = (load_checkpoint(tmp_path / run / "checkpoints" / name) for run in ("waits", "goes on"))
        assert one["global_step"] == other["global_step"]
        torch.testing.assert_close(one["state_dict"], other["state_dict"], rtol=0, atol=0)
        torch.testing.assert_close(one["optimizer_states"], other["optimizer_states"], rtol=0, atol=0)


def test_a_full_disk_ends_the_run_at_the_next_save_and_the_older_checkpoint_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(checkpoint: Any, path: Path) -> None:
        if checkpoint["global_step"] >= 4:
            raise CheckpointError(f"cannot write the checkpoint {path}: {os.strerror(errno.ENOSPC)}")
        write_checkpoint(checkpoint, path)

    monkeypatch.setattr(run_checkpoint, "write_checkpoint", full)
    with pytest.raises(CheckpointError, match=r"cannot write the checkpoint .*checkpoints/last\.tmp: No space left"):
        fit(tmp_path, RunCheckpoint(every_n_steps=1, background=True))
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / LAST)["global_step"] == 3
    fit(tmp_path, RunCheckpoint(every_n_steps=1, background=True), resume=True)
    assert load_checkpoint(tmp_path / LAST)["global_step"] == 6


def test_a_run_that_ends_with_an_error_has_its_checkpoint_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Killed):
        fit(tmp_path / "one", KillAt(3), RunCheckpoint(every_n_steps=2, background=True))
    assert load_checkpoint(tmp_path / "one" / LAST)["global_step"] == 3

    def full(checkpoint: Any, path: Path) -> None:
        raise CheckpointError("no space")

    monkeypatch.setattr(run_checkpoint, "write_checkpoint", full)
    with pytest.raises(Killed):
        fit(tmp_path / "two", KillAt(2), RunCheckpoint(every_n_steps=2, background=True))
    assert "no space" in caplog.messages


def test_another_writer_of_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"checkpoint.background: not with AsyncCheckpointIO of trainer.plugins"):
        fit(tmp_path, RunCheckpoint(background=True), plugins=[AsyncCheckpointIO()])


def test_an_error_is_raised_once() -> None:
    writer = BackgroundWriter()

    def fail() -> None:
        raise OSError("gone")

    writer.start(fail)
    with pytest.raises(OSError, match="gone"):
        writer.wait()
    writer.wait()


def test_a_snapshot_does_not_change_with_its_source_and_copies_a_shared_tensor_once() -> None:
    weight = torch.ones(3, requires_grad=True)
    state = {"a": weight, "b": (weight, [{"n": [1, 2]}]), "c": None}
    copied = snapshot(state)
    with torch.no_grad():
        weight += 1
    state["b"][1][0]["n"].append(3)  # type: ignore[index]  # mypy knows the dict as object
    assert copied["a"].tolist() == [1, 1, 1]
    assert copied["b"][0] is copied["a"]
    assert copied["b"][1] == [{"n": [1, 2]}]
    assert not copied["a"].requires_grad
    module = torch.nn.Linear(1, 1).state_dict()
    assert snapshot(module)._metadata == module._metadata  # type: ignore[attr-defined]  # torch sets it
