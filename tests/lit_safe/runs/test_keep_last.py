"""The last k checkpoints of a run, and going on from the newest whole one."""

from pathlib import Path

import pytest

from lit_safe.runs.checkpoint_path import newest_checkpoint
from lit_safe.runs.checkpoints import load_checkpoint
from lit_safe.runs.run_checkpoint import RunCheckpoint
from tests.lit_safe.runs.test_checkpoints import LAST, fit


def test_the_last_k_checkpoints_are_kept_and_one_that_is_cut_short_is_passed_over(tmp_path: Path) -> None:
    fit(tmp_path, RunCheckpoint(every_n_steps=1, keep_last=2))
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["last.ckpt", "step-5.ckpt", "step-6.ckpt"]
    assert (tmp_path / LAST).samefile(folder / "step-6.ckpt"), "one file with two names"
    whole = (tmp_path / LAST).read_bytes()
    (tmp_path / LAST).write_bytes(whole[:1000])  # both names
    found = newest_checkpoint(tmp_path)
    assert found == str(folder / "step-5.ckpt")
    assert load_checkpoint(found)["global_step"] == 5


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(ValueError, match="keep_last must be >= 0, got -1"):
        RunCheckpoint(keep_last=-1)
