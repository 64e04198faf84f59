"""Stops a run on a signal: SIGTERM, Ctrl-C, a scheduler's signal, or a terminal that closes."""

import logging
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch.callbacks import Checkpoint

from lit_safe.protocols.trainer import connected
from lit_safe.runs.checkpoints import FOLDER, LAST
from lit_safe.runs.run_checkpoint import RunCheckpoint, _ends_epoch, _ends_training, _validates

log = logging.getLogger(__name__)

Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
SAME = 0.3
"""A second signal within so many seconds is ignored: a launcher or ``make`` may forward the first one."""


class Stopped(SystemExit):
    """The run was stopped by a signal. The exit status is 128 + the signal's number, as in a shell."""


class StopOnSignal(Checkpoint):
    """On a signal, saves a checkpoint after the current optimizer step and stops. A second signal stops at once.

    During training the signal handler only sets a flag. At the end of each step the ranks exchange the flag (one
    all-reduce of one number). Then ``last.ckpt`` is saved and the process exits with status 143 (SIGTERM), 130 (Ctrl-C)
    or 128 + the signal's number. If a validation or an epoch's end follows the step, the run stops after it, because it
    could not be resumed exactly from before. Before the first step and after the last checkpoint nothing would be lost,
    so the process exits at once. ``validate``, ``test`` and ``predict`` also exit at once.

    Lightning's own signal handlers are not installed, because they save in the middle of a step. This includes its
    automatic requeue under Slurm. The scheduler's signal (SIGUSR1 by default) stops the run like the others. Signals
    that the process ignores remain ignored. All handlers are restored at the end.

    Lightning calls callbacks of this base class last, so ``RunCheckpoint`` has saved before this one is called.

    Args:
        command: The words of the command line, used to tell the user how to continue.
    """

    def __init__(self, command: Sequence[str] | None = None) -> None:
        self.command = command
        self._previous: dict[int, Handler] = {}
        self._trainer: Trainer | None = None
        self._at_steps = False
        self._stepped = False
        self._said = False
        self._received: int | None = None
        self._received_at = 0.0
        self._agreed: int | None = None

    # -- handlers

    def install(self, trainer: Trainer) -> None:
        """Install the signal handlers. Does nothing if they are installed, or outside the main thread."""
        if self._previous or threading.current_thread() is not threading.main_thread():
            return
        self._trainer, self._received, self._agreed = trainer, None, None
        self._at_steps = self._stepped = self._said = False
        # Lightning would replace these handlers by its own, which broadcast and save in the middle of a step
        trainer._signal_connector.register_signal_handlers = _nothing  # type: ignore[method-assign]
        environment = trainer._accelerator_connector.cluster_environment
        requeue = environment.requeue_signal if isinstance(environment, SLURMEnvironment) else None
        for number in dict.fromkeys((*SIGNALS, *([] if requeue is None else [requeue]))):
            handler = signal.getsignal(number)
            if handler not in (signal.SIG_IGN, None):
                self._previous[number] = signal.signal(number, self._handle)

    def restore(self) -> None:
        """Restore the former signal handlers."""
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        assert self._trainer is not None
        again, waited = self._received is not None, time.monotonic() - self._received_at
        self._received, self._received_at = self._received or number, time.monotonic()
        if _is_child(self._trainer) and not self._at_steps:
            if again:
                raise Stopped(self._status(number))
            os.kill(os.getppid(), number)  # the first rank stops all ranks
        elif again:
            if waited > SAME:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
        elif not self._at_steps:
            _end_children(self._trainer)
            raise Stopped(self._status(number))

    def _status(self, number: int) -> int:
        # Lightning kills the first rank if a rank that it started exits with another status
        return 0 if self._trainer is not None and _is_child(self._trainer) else 128 + number

    # -- Lightning's hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Install the signal handlers, if the command line has not."""
        self.install(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """From the first step on, signals wait for the end of a step."""
        self._at_steps = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop after the step, unless a validation or an epoch's end follows."""
        self._stepped = True
        if self._agree(trainer) and not _ends_epoch(trainer, batch_idx) and not _validates(trainer, batch_idx):
            self._save_and_stop(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop after the validation, unless the epoch's end follows."""
        if self._agreed and not trainer.sanity_checking and not _ends_epoch(trainer, trainer.fit_loop.batch_idx):
            self._save_and_stop(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop after the epoch's end, which is saved, unless the end of training follows."""
        if self._agree(trainer) and not _ends_training(trainer):
            self._stop(trainer)

    def end_saved(self, trainer: Trainer) -> None:
        """Stop before the final evaluation. Everything is saved, and a resumed run makes the evaluation."""
        self._at_steps = False
        if self._agree(trainer):  # again: a signal may have come while the end was saved
            self._stop(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Log what happened and how to continue, and restore the signal handlers."""
        if isinstance(exception, Stopped):
            self.say(trainer)
        self.restore()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the signal handlers."""
        self.restore()

    # -- the stop

    def _agree(self, trainer: Trainer) -> bool:
        """Whether any rank received a signal. The result is the same on all ranks."""
        number = self._received or 0
        if trainer.world_size > 1:
            shared = torch.tensor(number, device=trainer.strategy.root_device)
            number = int(trainer.strategy.reduce(shared, reduce_op="max"))
        self._agreed = number or None
        return bool(number)

    def _save_and_stop(self, trainer: Trainer) -> None:
        for callback in connected(trainer).callbacks:
            if isinstance(callback, RunCheckpoint) and trainer.global_step % (callback.every_n_steps or FAR):
                callback._save(trainer)  # a save that was due at this step is already done
        self._stop(trainer)

    def _stop(self, trainer: Trainer) -> None:
        assert self._agreed is not None
        for callback in connected(trainer).callbacks:
            if isinstance(callback, RunCheckpoint):
                callback.written(trainer)
        raise Stopped(self._status(self._agreed))

    def say(self, trainer: Trainer) -> None:
        """Log one line: the signal, where the run stopped, and the command that continues it."""
        number = self._agreed or self._received
        if number is None or self._said or not trainer.is_global_zero:
            return
        self._said = True
        name = signal.Signals(number).name
        if not self._stepped:
            log.warning("stopped by %s before anything was trained: run the same command to start again", name)
            return
        last = Path(trainer.default_root_dir) / FOLDER / LAST
        where = f"after step {trainer.global_step}" if self._at_steps else "after training"
        how = "" if self.command is None else f". Continue with: {continuing(self.command, last)}"
        log.warning("stopped by %s %s, saved in %s%s", name, where, last, how)


FAR = sys.maxsize


def continuing(command: Sequence[str], checkpoint: Path) -> str:
    """The command line that continues a run.

    Args:
        command: ``sys.argv`` of the run.
        checkpoint: The checkpoint to continue from.
    """
    program, *words = command
    name = Path(program).name
    if name == "__main__.py":
        start = ["python", "-m", Path(program).parent.name]
    else:
        start = ["python", program] if name.endswith(".py") else [name]
    kept, skip = [], False
    for word in words:
        if not skip and not word.startswith("--ckpt_path"):
            kept.append(word)
        skip = word == "--ckpt_path"
    return shlex.join([*start, *kept, "--ckpt_path", str(checkpoint)])


def _is_child(trainer: Trainer) -> bool:
    """Whether Lightning started this process as an additional rank."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return isinstance(environment, LightningEnvironment) and environment.local_rank() != 0


def _end_children(trainer: Trainer) -> None:
    """End the ranks that Lightning started. They have nothing to save.

    A rank that waits for this one in a collective operation does not react to SIGTERM, and a rank that does would send
    it back to this process. Lightning's observer kills this process when one of its children fails. It reads the same
    list, so the list is emptied first.
    """
    children = getattr(trainer.strategy.launcher, "procs", [])
    ended = list(children)
    children.clear()
    for child in ended:
        child.kill()


def _nothing() -> None:
    pass
