"""Files of checkpoints: read whole or refused by name, written whole or not at all, and the best one kept."""

import errno
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback

from lit_safe.constraint.dual_ascent import DualAscent
from lit_safe.hashing import uniform
from lit_safe.runs.checkpoints import CheckpointError, load_checkpoint, write_checkpoint
from lit_safe.runs.loggers.metrics_csv import MetricsCSV
from lit_safe.runs.run_checkpoint import RunCheckpoint
from lit_safe.runs.run_folder import RunFolder
from tests.lit_safe.constraint.test_dual import KillAt, Killed, module, trainer
from tests.lit_safe.dual_world import ExactCost, Toy

LAST = Path("checkpoints") / "last.ckpt"


def fit(folder: Path, *callbacks: Any, resume: bool = False, **options: Any) -> None:
    ours = [] if any(isinstance(c, RunCheckpoint) for c in callbacks) else [RunCheckpoint()]
    run = trainer(folder, RunFolder(), *callbacks, *ours, **{"logger": MetricsCSV(), "max_epochs": 2, **options})
    path = str(folder / LAST) if resume else None
    run.fit(module(), datamodule=Toy(3), ckpt_path=path, weights_only=True)


# -- reading


def test_a_flipped_byte_anywhere_in_the_tensors_is_refused_with_the_files_name(tmp_path: Path) -> None:
    path = tmp_path / "some.ckpt"
    write_checkpoint({"state_dict": {"w": torch.randn(5000)}}, path)
    whole = path.read_bytes()
    size = len(whole)
    refused = 0
    for seed in range(20):
        at = size // 10 + int(uniform("flip", seed) * size * 0.8)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        with pytest.raises(CheckpointError, match=r"some\.ckpt is damaged"):
            load_checkpoint(path)
        refused += 1
    assert refused == 20
    path.write_bytes(whole)
    assert load_checkpoint(path)["state_dict"]["w"].shape == (5000,)


def test_a_run_is_not_resumed_from_a_damaged_checkpoint(tmp_path: Path) -> None:
    fit(tmp_path / "run", max_epochs=1)
    path = tmp_path / "run" / LAST
    content = bytearray(path.read_bytes())
    content[content.index(load_checkpoint(path)["state_dict"]["pair.logit_PK"].numpy().tobytes()) + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"last\.ckpt is damaged .*continue from another checkpoint"):
        fit(tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"PK and then nothing", "not a checkpoint"),
        (b"weights, honestly\n" * 50, "not a checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "foreign.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=said) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match=f"there is no checkpoint {tmp_path}/nothing"):
        load_checkpoint(tmp_path / "nothing")


def test_a_checkpoint_of_something_else_is_one_line(tmp_path: Path) -> None:
    torch.save([1, 2, 3], tmp_path / "list.ckpt")
    with pytest.raises(CheckpointError, match="has no state_dict"):
        load_checkpoint(tmp_path / "list.ckpt")


# -- writing


def test_nothing_passes_through_the_temporary_folder_or_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a second copy of the checkpoint")

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)
    monkeypatch.setattr("lightning.fabric.plugins.io.torch_io._atomic_save", refuse)
    fit(tmp_path / "run")
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / "run" / LAST)["global_step"] == 6


class Full(io.FileIO):
    """A file on a disk that takes a thousand bytes more."""

    left = 1000

    def write(self, part: Any) -> int:
        self.left -= len(part)
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(part)


def test_a_full_disk_names_the_path_and_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    fit(folder, max_epochs=1)
    before = (folder / LAST).read_bytes()
    plain = Path.open

    def opened(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        return Full(self, "w") if mode == "wb" else plain(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(CheckpointError, match=r"cannot write the checkpoint .*checkpoints/last\.tmp: No space left"):
        fit(folder, resume=True)
    monkeypatch.undo()
    assert (folder / LAST).read_bytes() == before
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["last.ckpt"]
    fit(folder, resume=True)
    assert load_checkpoint(folder / LAST)["global_step"] == 6


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("a file", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"cannot write the checkpoint .*run/checkpoints/last\.tmp: File exists"):
        write_checkpoint({"state_dict": {}}, tmp_path / "run" / "checkpoints" / "last.tmp")


def test_a_kill_between_the_files_of_a_save_loses_no_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, plain = tmp_path / "run", os.replace
    replaced: list[str] = []

    def replace(source: Any, target: Any) -> None:
        if Path(target).name == "last.ckpt" and "epoch-0.ckpt" in replaced:
            raise Killed
        replaced.append(Path(target).name)
        plain(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(Killed):
        fit(folder, RunCheckpoint(every_n_steps=2, keep_epochs=True))
    monkeypatch.undo()
    assert load_checkpoint(folder / "checkpoints" / "epoch-0.ckpt")["global_step"] == 3
    fit(folder, RunCheckpoint(every_n_steps=2, keep_epochs=True), resume=True)
    kept = {path.name for path in (folder / "checkpoints").glob("*.ckpt")}
    assert kept == {"last.ckpt", "epoch-0.ckpt", "epoch-1.ckpt"}


# -- the best feasible iterate


class Scripted(ExactCost):
    """Gives each epoch's cost by a list, with an error of 0.1."""

    def __init__(self, costs: list[float]) -> None:
        super().__init__()
        self.costs_of_epochs = costs

    def __call__(self, module: Any, data: Any, *, seed: int, epoch: int) -> Any:
        exact = super().__call__(module, data, seed=seed, epoch=epoch)
        mean = torch.tensor(self.costs_of_epochs[epoch], dtype=torch.float64)
        return exact._replace(mean=mean, stderr=torch.tensor(0.1))


def keep_best(folder: Path, costs: list[float], *callbacks: Any, **options: Any) -> Path:
    dual = DualAscent(limit=0.5, lr=0.1, estimator=Scripted(costs))
    fit(folder, dual, RunCheckpoint(every_n_steps=1, keep_best=True), *callbacks, max_epochs=len(costs), **options)
    return folder / "checkpoints" / "best.ckpt"


def test_the_best_iterate_is_the_most_accurate_of_those_that_keep_the_limit(tmp_path: Path) -> None:
    """Feasible are the first and the third: the others cost 0.6, and 0.45 with an error of 0.1."""
    accuracies = iter([0.5, 0.9, 0.7, 0.95])

    def measure(run: Any, _: Any) -> None:
        run.callback_metrics["eval/rewards/accuracies"] = torch.tensor(next(accuracies))

    best = keep_best(tmp_path / "run", [0.2, 0.6, 0.3, 0.45], LambdaCallback(on_validation_end=measure))
    assert load_checkpoint(best)["global_step"] == 9
    record = json.loads(best.with_suffix(".json").read_text(encoding="utf-8"))
    assert (record["epoch"], record["step"], record["measured_by"]) == (2, 9, "eval/rewards/accuracies")
    assert record["accuracy"] == pytest.approx(0.7)
    assert record["limits"][0]["verdict"] == "met"
    assert record["limits"][0]["upper"] < 0.5


def test_where_no_iterate_keeps_the_limit_none_is_kept_and_one_line_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    best = keep_best(tmp_path / "run", [0.6, 0.45])
    assert not best.exists()
    assert [m for m in caplog.messages if "no epoch ended with every limit met" in m]


@pytest.mark.parametrize("step", [2, 4, 7, 8])
def test_the_best_iterate_of_a_resumed_run_is_that_of_an_undisturbed_one(tmp_path: Path, step: int) -> None:
    costs = [0.2, 0.6, 0.3]
    whole = keep_best(tmp_path / "whole", costs)
    with pytest.raises(Killed):
        keep_best(tmp_path / "run", costs, KillAt(step))
    best = keep_best(tmp_path / "run", costs, resume=True)
    one, other = load_checkpoint(best), load_checkpoint(whole)
    assert one["global_step"] == other["global_step"]
    assert all(torch.equal(value, other["state_dict"][name]) for name, value in one["state_dict"].items())
    assert best.with_suffix(".json").read_text(encoding="utf-8") == whole.with_suffix(".json").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [({"ship": "average", "estimator": ExactCost()}, "choose one of the two"), ({}, "set dual.estimator")],
)
def test_a_run_that_could_keep_no_best_iterate_is_refused(tmp_path: Path, options: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fit(tmp_path / "run", DualAscent(**options), RunCheckpoint(keep_best=True))
