"""``--ckpt_path`` means a file that exists, or one line says why not."""

import os
from pathlib import Path

import pytest
import torch

from lit_safe.runs.checkpoint_path import newest_checkpoint, resolve_checkpoint


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "last.ckpt").touch()
    (folder / "epoch-0.ckpt").touch()
    return folder.parent


def test_last_and_best_are_files_of_the_run_folder(run: Path) -> None:
    assert resolve_checkpoint("last", run) == str(run / "checkpoints" / "last.ckpt")
    with pytest.raises(FileNotFoundError, match=r"best: there is no .*best.ckpt; there is epoch-0.ckpt, last.ckpt"):
        resolve_checkpoint("best", run)
    (run / "checkpoints" / "best.ckpt").touch()
    assert resolve_checkpoint("best", run) == str(run / "checkpoints" / "best.ckpt")


def test_a_path_is_itself_and_a_missing_one_comes_with_what_is_there(run: Path) -> None:
    assert resolve_checkpoint(str(run / "checkpoints" / "epoch-0.ckpt"), Path("elsewhere")).endswith("epoch-0.ckpt")
    with pytest.raises(FileNotFoundError, match=r"there is no .*epoch-1.ckpt; there is epoch-0.ckpt, last.ckpt$"):
        resolve_checkpoint(str(run / "checkpoints" / "epoch-1.ckpt"), run)
    with pytest.raises(FileNotFoundError, match=r"run is a folder; there is checkpoints/epoch-0.ckpt, checkpoints/la"):
        resolve_checkpoint(str(run), run)
    with pytest.raises(FileNotFoundError, match=r"last: there is no .*last.ckpt \(nor a folder .*checkpoints\)$"):
        resolve_checkpoint("last", run / "absent")


@pytest.mark.parametrize(
    "typed", ["hpc", "registry", "registry:mine", "s3://bucket/last.ckpt", "https://host/last.ckpt"]
)
def test_what_lies_elsewhere_is_refused(typed: str, run: Path) -> None:
    with pytest.raises(ValueError, match="only local files"):
        resolve_checkpoint(typed, run)


def test_auto_is_the_newest_whole_checkpoint_and_names_a_damaged_one(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = run / "checkpoints"
    for age, name in enumerate(("last.ckpt", "step-6.ckpt", "step-3.ckpt", "epoch-0.ckpt")):
        torch.save({"state_dict": {}}, folder / name)
        os.utime(folder / name, (1000 - age, 1000 - age))
    assert newest_checkpoint(run) == str(folder / "last.ckpt")
    whole = (folder / "last.ckpt").read_bytes()
    (folder / "last.ckpt").write_bytes(whole[: len(whole) // 2])
    os.utime(folder / "last.ckpt", (2000, 2000))
    with caplog.at_level("WARNING"):
        assert newest_checkpoint(run) == str(folder / "step-6.ckpt")
    assert "last.ckpt is not a checkpoint, or only part of one: trying an older one" in caplog.text


def test_auto_starts_a_run_that_has_no_checkpoint(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "absent") is None
