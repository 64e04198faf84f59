"""``python train.py <words>`` in processes that share one import, which by itself takes as long as many steps do."""

from __future__ import annotations

import logging
import multiprocessing
import os
import runpy
import shlex
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

log = logging.getLogger(__name__)

IMPORTED_ONCE = ["lit_safe.cli", "models.pair", "data.module", "data.sft", "data.oracle.measure"]


def start(*words: str, log_to: Path) -> BaseProcess:
    """``python train.py <words>`` on one thread, its output in a file."""
    log.info("%s > %s", shlex.join(["python", "train.py", *words]), log_to)
    os.environ["OMP_NUM_THREADS"] = "1"  # read when the server that the processes come from imports torch
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(IMPORTED_ONCE)
    process = server.Process(target=_train, args=(words, str(log_to)))
    process.start()
    return process


def run(*words: str, log_to: Path) -> None:
    """As ``start``, and wait.

    Raises:
        RuntimeError: It failed; names the file that says why.
    """
    process = start(*words, log_to=log_to)
    process.join()
    if process.exitcode:
        raise RuntimeError(f"train.py {words[0]} failed: see {log_to}")


def _train(words: tuple[str, ...], log_to: str) -> None:
    output = os.open(log_to, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    sys.argv = ["train.py", *words]
    runpy.run_path("train.py", run_name="__main__")
