"""Runs the stages in order. Every step that is complete is kept; a step that was broken off is continued."""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_safe.runs.checkpoints import FOLDER, LAST
from lit_safe.runs.run_folder import CONFIG
from lit_safe.stages.pipeline import Stage, output
from lit_safe.stages.record import Record

log = logging.getLogger(__name__)

Command = Callable[[Sequence[str]], int]
"""Runs the words of one of our commands, and returns its exit status."""

TRAINED, MODEL = "trained", "model"
"""Steps of a stage in ``stages.json``: the fit has ended, and what the stage gives is complete."""
SCORE_MODEL = "score_model"  # the folder that a fit of a score model writes itself


def run_stages(stages: Sequence[Stage], record: Record, settings: Mapping[str, Mapping[str, Any]], run: Command) -> int:
    """Run every step that is not done, until one fails.

    Args:
        stages: Checked stages.
        record: Of the pipeline's folder, opened.
        settings: The complete settings of each stage.
        run: Runs a command.

    Returns:
        The exit status: 0, or that of the command that failed.
    """
    for number, stage in enumerate(stages, 1):
        title = f"stage {number} of {len(stages)}, {stage.name}"
        if record.is_done(stage.name, MODEL):
            log.info("%s: done", title)
            continue
        log.info("%s", title)
        status = _run_stage(stage, record, settings[stage.name], run)
        if status:
            log.error(
                "%s ended with status %d. The same command continues it; stages that are done are kept", title, status
            )
            return status
    return 0


def _run_stage(stage: Stage, record: Record, settings: Mapping[str, Any], run: Command) -> int:
    out = output(record.folder, stage.name)
    if not stage.gives_model:
        return _step(stage, record, MODEL, run, [stage.command, "-c", str(record.settings(stage.name))])
    if stage.merge is None and not record.is_done(stage.name, TRAINED):
        status = _step(stage, record, TRAINED, run, fit_words(stage.name, record))
        if status:
            return status
    scores = record.folder / stage.name / SCORE_MODEL
    if scores.is_dir():
        out.unlink(missing_ok=True)
        out.symlink_to(SCORE_MODEL, target_is_directory=True)
    if out.is_dir():  # complete, because it appears by a rename: only the mark is missing
        record.add(stage.name, MODEL, 0.0, done=True)
        return 0
    words = export_words(stage.name, record) if stage.merge is None else merge_words(stage, record.folder)
    return _step(stage, record, MODEL, run, words)


def fit_words(name: str, record: Record) -> list[str]:
    """The fit of a stage, continued from its last checkpoint if there is one."""
    folder = record.folder / name
    last, used = folder / FOLDER / LAST, folder / CONFIG
    if last.is_file() and used.is_file():  # config.yaml holds a seed that was drawn
        return ["fit", "-c", str(used), "--ckpt_path", str(last)]
    return ["fit", "-c", str(record.settings(name))]


def export_words(name: str, record: Record) -> list[str]:
    """The export of a stage's policy."""
    folder = record.folder / name
    words = ["export", "-c", str(folder / CONFIG), "--ckpt_path", str(folder / FOLDER / LAST)]
    return [*words, "--out", str(output(record.folder, name))]


def merge_words(stage: Stage, folder: Path) -> list[str]:
    """The command of a stage that merges."""
    merge = stage.merge
    assert merge is not None
    words = ["merge", *(str(output(folder, name)) for name in merge.of), "--out", str(output(folder, stage.name))]
    words += [f"--weight={json.dumps(merge.weight)}", "--method", merge.method]
    words += [f"--density={merge.density}", f"--seed={merge.seed}"]
    return words if merge.base is None else [*words, "--base", str(output(folder, merge.base))]


def _step(stage: Stage, record: Record, step: str, run: Command, words: Sequence[str]) -> int:
    start = time.monotonic()
    status = run(words)
    record.add(stage.name, step, time.monotonic() - start, done=status == 0)
    return status
