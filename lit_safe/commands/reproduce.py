"""Runs both papers' methods at a scale and reports their figures beside ours."""

import logging
import os
import platform
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lit_safe.errors.message import SettingError
from lit_safe.reproduction.measured import Seen, read_oracle, read_runs
from lit_safe.reproduction.page import PAGE, write_report
from lit_safe.reproduction.plan import (
    ORACLE,
    ORACLE_METHODS,
    SCALES,
    ScaleName,
    Step,
    plan_lines,
    planned,
    write_pipelines,
)
from lit_safe.runs.run_lock import RunFolderError, RunLock
from lit_safe.stages.process import run_command

log = logging.getLogger(__name__)


def reproduce(
    scale: ScaleName = "oracle",
    folder: str | None = None,
    seeds: list[int] | None = None,
    only: str | None = None,
    options: list[str] | None = None,
) -> int:
    """Run C-DPO, SafeDPO and their baselines at a scale, and set their figures beside the papers' published ones.

    First the plan is printed: every command, and about how long it takes. After a stop or a kill the same command
    continues. ``report.md`` has the orderings of the papers' figures as paired differences with verdicts (holds, does
    not hold, cannot be told), our tables, and the published figures in a table of their own. Also written:
    ``summary.json`` and ``plane.png``.

    Args:
        scale: ``oracle``: a world whose rewards and costs are known, minutes on two cores. ``135m``: SmolLM2-135M, some
            hours. ``7b``: the papers' recipes, on 8 large GPUs.
        folder: Folder of the reproduction. Null takes ``runs/reproduce/SCALE``.
        seeds: Seeds of the runs. Null takes 0 and 1.
        only: ``plan`` prints the plan and ends; ``report`` writes the report of what is there. Null runs everything.
        options: Options of the oracle study, in place of its usual ones, for example for a short run.

    Returns:
        The exit status: 0, or that of the command that failed. The report is written in both cases.

    Raises:
        SettingError: If the seeds or ``only`` are wrong, or nothing was measured.
    """
    if only not in (None, "plan", "report"):
        raise SettingError(f"only must be plan or report, got {only!r}")
    if options and scale != "oracle":
        raise SettingError(f"options are of the oracle study, and the scale is {scale}: leave them out")
    place = Path(folder or f"runs/reproduce/{scale}")
    chosen = [0, 1] if seeds is None else seeds
    steps = planned(scale, place, chosen, options or ())
    for line in plan_lines(scale, steps):
        log.info("%s", line)
    if only == "plan":
        return 0
    lock = RunLock(place)
    try:
        lock.acquire()
    except RunFolderError as error:
        raise SystemExit(str(error).replace("--trainer.default_root_dir", "--folder")) from None
    try:
        if only is None:
            write_pipelines(scale, place, chosen)
        status = _run(steps) if only is None else 0
        _report(scale, place, steps)
    finally:
        lock.release()
    return status


def _run(steps: list[Step]) -> int:
    for number, step in enumerate(steps, 1):
        log.info("step %d of %d: %s", number, len(steps), step.what)
        status = run_command(step.words)
        if status:
            log.error("step %d ended with status %d. The same command continues it", number, status)
            return status
    return 0


def _report(scale: ScaleName, folder: Path, steps: list[Step]) -> None:
    seen = _named(read_oracle(folder / ORACLE)) if scale == "oracle" else read_runs(folder)
    facts = [
        f"- scale {scale}: {SCALES[scale].what}",
        *(f"- `lit-safe {shlex.join(step.words)}`" for step in steps),
        f"- {os.cpu_count()} CPU threads ({platform.machine()}), written {datetime.now(UTC):%Y-%m-%d}",
    ]
    try:
        path = write_report(folder, seen, facts, SCALES[scale].limit, SCALES[scale].offset)
    except ValueError as error:
        log.error("no %s: %s", PAGE, error)
        return
    log.info("report: %s", path)


def _named(seen: Seen) -> Seen:
    """The runs of the oracle by the names of their methods; other objectives of the folder are left out."""
    method = {file: name for name, file in ORACLE_METHODS.items()} | {"sft": "sft"}

    def renamed(values: dict[str, Any]) -> dict[str, Any]:
        return {method[name]: value for name, value in values.items() if name in method}

    return seen._replace(cells=renamed(seen.cells), seconds=renamed(seen.seconds))
