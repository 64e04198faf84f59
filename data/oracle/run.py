"""Run a study in the oracle world: reference, samples, one training per objective, anchor and seed, and report.

    lit-safe oracle --seeds 0 1 --objectives c_dpo_dual safe_dpo_soft --anchors none reference_support

Every step is a command of ``lit-safe`` and is logged, so that it can be repeated by hand. An objective is a file
``configs/oracle/<objective>.yaml``. An anchor is a file ``configs/oracle/anchor/<anchor>.yaml``, optionally with
another weight as in ``reference_support=0.3``, or ``none``. Runs are single-threaded, and several run at a time.

Another call in the same folder adds to the study. Finished runs with the same files and options are kept, others are
trained again, and the report contains all valid runs. Changes of code are not detected: use --fresh after one.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from data.oracle.study import Job, Study
from data.oracle.study.report import write_report
from data.oracle.study.workers import ending_workers

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/oracle"))
    parser.add_argument("--objectives", nargs="+", default=["c_dpo_dual", "safe_dpo_soft", "c_dpo", "dpo_soft"])
    parser.add_argument(
        "--anchors",
        nargs="+",
        default=["reference_support"],
        help="none, or files of configs/oracle/anchor, with =WEIGHT if not the file's",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--prompts", type=int, default=64, help="number of the world's prompts to use")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="parallel runs, one thread each")
    parser.add_argument("--fresh", action="store_true", help="first remove the files of an earlier study")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="arguments for every fit; comes last")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    words = tuple(options.options)
    # the longest runs first, so that workers finish at about the same time
    jobs = [Job(o, a, s, words) for o in options.objectives for a in options.anchors for s in options.seeds]
    if missing := sorted({str(path) for job in jobs for path in job.missing}):
        parser.error(f"there is no {', no '.join(missing)}")
    study = Study(options.folder, options.prompts)
    if options.fresh:
        study.remove()
    try:
        study.check()
    except ValueError as error:
        parser.error(str(error))
    try:
        with ending_workers():
            return _run(study, jobs, options.seeds, options.workers)
    except KeyboardInterrupt:
        log.error("stopped by Ctrl-C: run the same command to continue")
        return 128 + signal.SIGINT


def _run(study: Study, jobs: Sequence[Job], seeds: Sequence[int], workers: int) -> int:
    started = time.monotonic()
    study.prepare(seeds, workers)
    failed = study.train(jobs, workers)
    if results := study.results(jobs[0].options if jobs else ()):
        write_report(study.folder, results)
        log.info("%.1f minutes; report: %s", (time.monotonic() - started) / 60, study.folder / "report.md")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
