"""Runs one command of ours in a process of its own, and passes on the signals that this process gets."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import lit_safe

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1") if hasattr(signal, name))


def run_command(words: Sequence[str]) -> int:
    """Run ``python -m lit_safe WORDS`` and wait for its end. Its output goes where this process's output goes.

    A signal to this process is passed on, and the process is waited for: ``fit`` saves a checkpoint before it ends.

    Args:
        words: The command and its options.

    Returns:
        The exit status. As in a shell, it is 128 + n if signal n ended the process.
    """
    root = str(Path(lit_safe.__file__).resolve().parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    process = subprocess.Popen([sys.executable, "-m", "lit_safe", *words], env=environment)
    with _passing_signals_to(process):
        status = process.wait()
    return 128 - status if status < 0 else status


@contextmanager
def _passing_signals_to(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    def pass_on(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)  # Ctrl-C reaches the process from the terminal too; it ignores the second one

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        for number, handler in before.items():
            if handler not in (signal.SIG_IGN, None):
                signal.signal(number, pass_on)
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
