"""Runs one side in a process of its own: python -m tests.peers.step.side JOB.json RESULT.json."""

import json
import logging
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

import psutil
import torch

from lit_safe.execution.process_memory import peak_bytes
from tests.peers.step.job import Job


def main(job_file: str, result_file: str) -> None:
    """Train, and write what was measured."""
    job = Job.read(Path(job_file))
    torch.set_num_threads(job.threads)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    if job.side == "trl":
        from tests.peers.step.theirs import train
    else:
        from tests.peers.step.ours import train
    imported = psutil.Process().memory_info().rss
    runs = [asdict(run) for run in train(job)]
    found = {"runs": runs, "imported_bytes": imported, "peak_bytes": peak_bytes()}
    Path(result_file).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
