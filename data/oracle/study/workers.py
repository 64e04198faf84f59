"""Runs ``lit-safe <words>`` in processes that share one import, because an import takes as long as many steps."""

from __future__ import annotations

import logging
import multiprocessing
import os
import runpy
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from lit_safe.installation import root

log = logging.getLogger(__name__)

IMPORTED_ONCE = ["lit_safe.cli", "models.pair", "data.module", "data.sft", "data.oracle.truth.measure"]


def start(*words: str, log_to: Path) -> BaseProcess:
    """Start ``lit-safe <words>`` on one thread, with its output in a file."""
    log.info("%s > %s", shlex.join(["lit-safe", *words]), log_to)
    os.environ["OMP_NUM_THREADS"] = "1"  # torch reads it when the process, or its server, imports torch
    # a process gets our sys.path; the server of Python 3.11 does not, and silently skips modules that it does not find
    others = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([str(root()), *others]))
    process = _process(target=_train, args=(words, str(log_to)))
    process.start()
    return process


def run(*words: str, log_to: Path) -> None:
    """Like ``start``, but waits for the end.

    Raises:
        RuntimeError: The command failed. The message names the file with the reason.
    """
    process = start(*words, log_to=log_to)
    process.join()
    if process.exitcode:
        raise RuntimeError(f"lit-safe {words[0]} failed: see {log_to}")


@contextmanager
def ending_workers() -> Iterator[None]:
    """Make SIGTERM raise SystemExit inside, so that the workers end too. The former handler is restored."""
    former = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def _process(target: Callable[..., None], args: tuple[Any, ...]) -> BaseProcess:
    """A process that is not forked from this one; if the system supports it, from a server with the imports done."""
    if "forkserver" not in multiprocessing.get_all_start_methods():  # Windows
        return multiprocessing.get_context("spawn").Process(target=target, args=args)
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(IMPORTED_ONCE)
    return server.Process(target=target, args=args)


def _train(words: tuple[str, ...], log_to: str) -> None:
    output = os.open(log_to, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    sys.argv = ["lit-safe", *words]
    runpy.run_module("lit_safe", run_name="__main__", alter_sys=False)
