"""What is wrong with a run's folder, disk or checkpoint is one line of the command line, before anything is read."""

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning import Trainer

from lit_safe.cli import SafeCLI
from lit_safe.runs.run_folder import RunFolder
from lit_safe.runs.signals import StopOnSignal
from tests.lit_safe.typed_world import Run, typed

__all__ = ["typed"]  # a fixture


def test_a_folder_that_cannot_be_written_and_a_checkpoint_that_is_not_there(typed: Run) -> None:
    Path("pairs.jsonl").unlink()  # reading it would be another error
    Path("file").touch()
    with pytest.raises(SystemExit, match=r"^file/run cannot be written \(Not a directory\): [^\n]*$"):
        typed("fit", "--trainer.default_root_dir", "file/run")
    for command in ("fit", "validate"):
        with pytest.raises(SystemExit, match=r"^--ckpt_path last: there is no runs/x/checkpoints/last.ckpt [^\n]*$"):
            typed(command, "--ckpt_path", "last")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_is_named_with_the_file_and_what_to_do(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any, subcommand: str) -> None:
        raise OSError(number, "No space left on device", "runs/x/metrics.csv")

    monkeypatch.setattr("lightning.pytorch.cli.LightningCLI._run_subcommand", full)
    cli: Any = SafeCLI.__new__(SafeCLI)
    cli.trainer = Trainer(
        default_root_dir=tmp_path / "run", accelerator="cpu", logger=False, callbacks=[RunFolder(), StopOnSignal()]
    )
    cli.config = {"fit": SimpleNamespace(get=lambda name: None)}
    with pytest.raises(SystemExit, match=r"^runs/x/metrics.csv cannot be written .*: make room, then"):
        cli._run_trainer("fit")
    assert not (tmp_path / "run").exists()
