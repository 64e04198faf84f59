"""What this code asks of Lightning beyond its documented interface is there and means what it meant.

``pyproject.toml`` sets no upper bound on Lightning. Where this file fails under a new release, the callbacks that the
message names have to be read again.
"""

import inspect
import re
from pathlib import Path

import pytest
from lightning import Trainer
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from tests.lit_safe.pair_world import trainer

SOURCES = Path(__file__).parents[3] / "lit_safe"
LOOP = r"\b(?:fit_loop|epoch_loop|loop|epoch_progress|progress)\.([a-z_.]+)"

FIT_LOOP = {
    "_can_stop_early",
    "epoch_loop",
    "epoch_loop.max_steps",
    "epoch_loop.reset_restart_stage",
    "epoch_loop.restarting",
    "epoch_progress",
    "epoch_progress.current.completed",
    "epoch_progress.current.processed",
    "epoch_progress.increment_completed",
    "epoch_progress.total.completed",
    "max_epochs",
    "max_steps",
    "reset_restart_stage",
    "restarted_on_epoch_end",
    "total_batch_idx",
}
TRAINER = {
    "enable_validation",
    "num_val_batches",
    "is_last_batch",
    "should_stop",
    "val_check_batch",
    "num_training_batches",
    "datamodule",
}


def reached(run: object, path: str) -> object:
    for name in path.split("."):
        run = getattr(run, name)
    return run


@pytest.mark.parametrize("path", sorted(FIT_LOOP))
def test_the_loop_has_what_our_callbacks_read_and_write(path: str) -> None:
    reached(trainer().fit_loop, path)


@pytest.mark.parametrize("name", sorted(TRAINER))
def test_the_trainer_has_what_our_callbacks_read(name: str) -> None:
    assert hasattr(Trainer, name) or hasattr(trainer(), name)


def test_every_use_of_the_loop_stands_in_this_file() -> None:
    names = ("constraint/dual_ascent", "runs/run_checkpoint", "runs/end_of_run", "training/stepping", "training/module")
    files = [SOURCES / f"{name}.py" for name in names]
    used = {name.rstrip(".") for file in files for name in re.findall(LOOP, file.read_text(encoding="utf-8"))}
    known = {path.removeprefix(prefix) for path in FIT_LOOP for prefix in ("", "epoch_loop.", "epoch_progress.")}
    assert used
    assert used <= known, "add them above"


def test_an_epoch_is_counted_where_a_resumed_run_counts_it() -> None:
    loop = trainer(max_epochs=3).fit_loop
    before = loop.epoch_progress.current.completed, loop.epoch_progress.total.completed
    loop.epoch_progress.increment_completed()
    assert (loop.epoch_progress.current.completed, loop.epoch_progress.total.completed) == tuple(n + 1 for n in before)
    loop.max_epochs = 7
    assert loop.trainer.max_epochs == 7
    loop.epoch_loop.max_steps = 11
    assert loop.max_steps == loop.trainer.max_steps == 11


def test_the_observer_of_child_ranks_reads_the_launchers_list() -> None:
    """``StopOnSignal`` empties this list so that the observer does not kill the first rank."""
    observer = _ChildProcessObserver(main_pid=-1, child_processes=(children := [object()]))
    children.clear()
    assert observer._run()
    assert "_launch_process_observer(self.procs)" in inspect.getsource(_SubprocessScriptLauncher.launch)
