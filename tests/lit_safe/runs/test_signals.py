"""Told to stop, a run stops at the next step, says how to go on, and ends with the bits of one nobody stopped."""

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins.environments import SLURMEnvironment

from lit_safe.runs import signals
from lit_safe.runs.loggers.metrics_csv import MetricsCSV
from lit_safe.runs.run_checkpoint import RunCheckpoint
from lit_safe.runs.run_folder import RunFolder
from lit_safe.runs.signals import SIGNALS, StopOnSignal, Stopped, continuing
from tests.lit_safe.line_world import BATCHES, Line
from tests.lit_safe.runs import resumable_run
from tests.lit_safe.runs.resumable_run import Job
from tests.lit_safe.runs.test_resume import VARIANTS, assert_same_run

PLACES = ("micro_batch", "step", "validation", "dual", "whole checkpoint", "logging", "end")


def handlers() -> dict[int, Any]:
    return {number: signal.getsignal(number) for number in SIGNALS}


@pytest.fixture(autouse=True)
def none_is_ignored() -> Iterator[None]:
    """A shell starts background commands with SIGINT ignored, nohup with SIGHUP ignored. These tests need both."""
    former = handlers()
    for number, handler in former.items():
        if handler == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of each variant that nobody stops."""
    folders = {variant: tmp_path_factory.mktemp("whole") / "run" for variant in VARIANTS}
    for variant, folder in folders.items():
        resumable_run.fit(Job(str(folder), variant))
    return folders


@pytest.mark.parametrize("seed", [pytest.param(s, marks=() if s < 4 else pytest.mark.slow) for s in range(16)])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_run_stopped_anywhere_and_resumed_ends_on_the_same_bits(
    number: int, seed: int, whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(1000 * number + seed)
    variant, place = draw.choice(VARIANTS), PLACES[seed % len(PLACES)]
    before, folder = handlers(), tmp_path / "run"
    monkeypatch.setattr(resumable_run.Places, "signal", number)
    stopped = False
    try:
        resumable_run.fit(Job(str(folder), variant, place, draw.randint(1, 6)))
    except Stopped as error:
        stopped = error.code == 128 + number
    assert handlers() == before
    if stopped and not folder.exists():  # before the first step
        resumable_run.fit(Job(str(folder), variant))
    elif stopped:
        last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        rows = (folder / "metrics.csv").read_text(encoding="utf-8").count("\n") - 1
        saved = last["callbacks"]["RunFolder"]["position"]["metrics.csv"]
        assert saved == rows or (place == "end" and saved < rows)  # what the end logs after its save is logged again
        resumable_run.fit(Job(str(folder), variant))
    assert_same_run(folder, whole[variant])


class Sends(Callback):
    """Sends signals to its own process at a hook."""

    def __init__(self, hook: str, *numbers: int) -> None:
        self.numbers = numbers
        setattr(self, hook, self._send)

    def _send(self, *args: Any, **kwargs: Any) -> None:
        for number in self.numbers:
            os.kill(os.getpid(), number)
        self.numbers = ()


def trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=[MetricsCSV()],
        callbacks=[RunFolder(), *callbacks, RunCheckpoint(), StopOnSignal(["train.py", "fit", "-c", "a.yaml"])],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **{"max_epochs": 2, "limit_val_batches": 0, **options},
    )


@pytest.mark.parametrize("number", SIGNALS)
def test_the_status_is_a_shells_and_one_line_says_how_to_go_on(
    number: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = handlers()
    with pytest.raises(Stopped) as stopped:
        trainer(tmp_path / "run", Sends("on_before_backward", number)).fit(Line(), BATCHES, BATCHES)
    assert stopped.value.code == 128 + number
    [line] = [record.getMessage() for record in caplog.records if "stopped by" in record.getMessage()]
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert line.startswith(f"stopped by {signal.Signals(number).name} after step 1, saved in {last}. Continue with: ")
    assert line.endswith(f"python train.py fit -c a.yaml --ckpt_path {last}")
    assert torch.load(last, weights_only=True)["global_step"] == 1
    assert handlers() == before


@pytest.mark.parametrize("hook", ["setup", "on_fit_start", "on_train_start", "on_train_epoch_start"])
def test_before_the_first_step_it_ends_at_once_and_leaves_nothing(
    hook: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Later(Callback):
        """Logs, as an evaluation before training does, and must not be reached after the signal."""

        def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            trainer.logger.log_metrics({"report/cost": 1.0}, step=0)

        def on_train_batch_start(self, *args: Any) -> None:
            raise AssertionError("went on")

    run = trainer(tmp_path / "runs" / "x", Later(), Sends(hook, signal.SIGTERM))
    for callback in run.callbacks:
        if isinstance(callback, StopOnSignal):
            callback.install(run)  # as the command line does
    with pytest.raises(Stopped) as stopped:
        run.fit(Line(), BATCHES, BATCHES)
    assert stopped.value.code == 143
    assert list(tmp_path.iterdir()) == []
    assert caplog.text.count("run the same command to start again") == 1


class AsksForTheEnd(Callback):
    """As early stopping does."""

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        trainer.should_stop = True


def test_it_stops_and_saves_while_early_stopping_waits_for_min_epochs(tmp_path: Path) -> None:
    sends = Sends("on_train_epoch_end", signal.SIGTERM)
    with pytest.raises(Stopped):
        trainer(tmp_path / "run", AsksForTheEnd(), sends, min_epochs=5, max_epochs=5).fit(Line(), BATCHES, BATCHES)
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2


def test_validate_ends_at_once_with_the_status(tmp_path: Path) -> None:
    run = trainer(tmp_path / "run", Sends("on_validation_batch_start", signal.SIGTERM), limit_val_batches=1)
    with pytest.raises(Stopped) as stopped:
        run.validate(Line(), BATCHES, verbose=False)
    assert stopped.value.code == 143


def test_a_second_signal_ends_the_process_and_an_echo_of_the_first_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    run = trainer(tmp_path / "run")
    stop = StopOnSignal()
    before = handlers()
    stop.install(run)
    stop.on_train_batch_start(run, Line(), None, 0)
    monkeypatch.setattr(signals.os, "kill", lambda process, number: sent.append(number))
    stop._handle(signal.SIGTERM, None)
    stop._handle(signal.SIGTERM, None)  # a launcher's
    assert sent == []
    now = time.monotonic() + 1
    monkeypatch.setattr(signals.time, "monotonic", lambda: now)
    stop._handle(signal.SIGTERM, None)
    assert sent == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # so the system ends the process
    stop.restore()
    assert handlers() == before


def test_a_signal_that_the_process_ignores_stays_ignored(tmp_path: Path) -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        trainer(tmp_path / "run", Sends("on_before_backward", signal.SIGHUP)).fit(Line(), BATCHES, BATCHES)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, former)


def test_slurms_signal_stops_the_run_the_same_way_and_nothing_is_requeued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("NTASKS", "1"), ("JOB_ID", "7"), ("JOB_NAME", "fit"), ("NODEID", "0"), ("LOCALID", "0")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setattr("lightning.pytorch.trainer.connectors.signal_connector.call", lambda words: 1 / 0)
    run = trainer(
        tmp_path / "run",
        Sends("on_before_backward", signal.SIGUSR2),
        plugins=[SLURMEnvironment(auto_requeue=True, requeue_signal=signal.SIGUSR2)],
    )
    with pytest.raises(Stopped) as stopped:
        run.fit(Line(), BATCHES, BATCHES)
    assert stopped.value.code == 128 + signal.SIGUSR2
    assert not list((tmp_path / "run").glob("hpc*"))
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["train.py", "fit", "--ckpt_path", "old.ckpt", "-c", "b c.yaml"], "python train.py fit -c 'b c.yaml'"),
        (["train.py", "fit", "--ckpt_path=last"], "python train.py fit"),
        (["/venv/bin/lit-safe", "fit"], "lit-safe fit"),
        (["/venv/lit_safe/__main__.py", "fit"], "python -m lit_safe fit"),
    ],
)
def test_the_command_that_continues_names_the_checkpoint_once(argv: list[str], command: str) -> None:
    assert continuing(argv, Path("runs/x/checkpoints/last.ckpt")) == (
        f"{command} --ckpt_path runs/x/checkpoints/last.ckpt"
    )


def test_after_training_it_ends_before_the_evaluation_and_the_end_is_saved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Evaluates(Callback):
        def on_train_end(self, *args: Any) -> None:
            raise AssertionError("went on")

    sends = Sends("on_train_epoch_end", signal.SIGTERM)
    with pytest.raises(Stopped):
        trainer(tmp_path / "run", sends, Evaluates(), max_epochs=1).fit(Line(), BATCHES, BATCHES)
    assert "stopped by SIGTERM after training, saved in" in caplog.text
    stored = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert stored["callbacks"]["RunCheckpoint"]["ended"]


def test_a_signal_while_the_end_is_saved_ends_it_before_the_evaluation(tmp_path: Path) -> None:
    class Evaluates(Callback):
        def on_train_end(self, *args: Any) -> None:
            raise AssertionError("went on")

    class AtTheEnd(Callback):
        def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
            if trainer.current_epoch == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        trainer(tmp_path / "run", AtTheEnd(), Evaluates(), max_epochs=1).fit(Line(), BATCHES, BATCHES)
    stored = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert stored["callbacks"]["RunCheckpoint"]["ended"]
