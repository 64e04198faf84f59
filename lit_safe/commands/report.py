"""Writes the report of a finished run, from its folder or, if results are missing, by evaluating it again."""

import json
import logging
from pathlib import Path
from typing import Any

import yaml

from lit_safe.protocols.trainer import connected
from lit_safe.report.before_after import BeforeAfter
from lit_safe.report.contents import PAGE, draw
from lit_safe.report.tables import PAIRS, REPORT
from lit_safe.runs.checkpoints import FOLDER, LAST, glance
from lit_safe.runs.end_of_run import failures
from lit_safe.runs.run_checkpoint import RunCheckpoint
from lit_safe.runs.run_folder import CONFIG, SaveConfig

log = logging.getLogger(__name__)

NOT_OF_A_RUN = ("ckpt_path", "weights_only", "config", "subcommand")  # arguments of the command in config.yaml


class NoReport(ValueError):
    """A run's report cannot be written. The message gives the reason in one line."""


def report(runs: list[str]) -> int:
    """Write report.md, report.json and report.png of finished runs if they are missing or outdated.

    If ``report.json`` belongs to the last checkpoint, page and figure are drawn from it; no model is loaded. Otherwise
    the run is resumed from ``checkpoints/last.ckpt`` with its own ``config.yaml``. It takes no training step, evaluates
    the policy that it ships, and writes all files. Relative paths in ``config.yaml`` start at the working directory.

    Args:
        runs: Run folders.

    Returns:
        The exit status: 0, or 1 if a report could not be written.
    """
    failed = False
    for run in runs:
        try:
            failed |= not _report(Path(run))
        except (Exception, SystemExit) as error:
            reason = str(error).strip().partition("\n")[0]
            kind = "" if isinstance(error, NoReport | SystemExit) else f"{type(error).__name__}: "
            log.error("%s: %s%s", run, kind, reason)
            failed = True
    return int(failed)


def _report(folder: Path) -> bool:
    found = _current(folder)
    if found is None:
        return _end_again(folder)
    draw(folder, found)
    log.info("report: %s", folder / PAGE)
    return True


def _current(folder: Path) -> dict[str, Any] | None:
    """The content of ``report.json`` if it belongs to the folder's last checkpoint, else None."""
    path, last = folder / REPORT, folder / FOLDER / LAST
    if not path.exists() or not (folder / PAIRS).exists():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        steps = found["training"]["steps"]
    except (ValueError, KeyError, TypeError):
        return None  # incomplete
    return found if not last.exists() or glance(last)["global_step"] == steps else None


def _end_again(folder: Path) -> bool:
    """Resume the run after its last step, which evaluates it and writes its report."""
    from lit_safe.cli import main  # which imports the commands

    last, config = folder / FOLDER / LAST, folder / CONFIG
    for path in (config, last):
        if not path.exists():
            raise NoReport(f"there is no {path}: this is not a run folder, or the run stopped too early for a report")
    state = glance(last)["callbacks"]
    if state.get("BeforeAfter", {}).get("before") is None:
        raise NoReport("the run has no evaluation from before training: it ran without BeforeAfter")
    if not state.get("RunCheckpoint", {}).get("ended", True):
        raise NoReport(f"training has not ended: `python train.py fit -c {config} --ckpt_path {last}` continues it")
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    settings = {key: value for key, value in settings.items() if key not in NOT_OF_A_RUN}
    settings["trainer"]["default_root_dir"] = str(folder)
    cli = main(settings, run=False)
    trainer = cli.trainer
    callbacks = [c for c in connected(trainer).callbacks if not isinstance(c, SaveConfig)]
    connected(trainer).callbacks = callbacks
    if not any(isinstance(callback, BeforeAfter) for callback in callbacks):
        raise NoReport(f"{config} has no BeforeAfter in trainer.callbacks")
    for callback in callbacks:
        if isinstance(callback, RunCheckpoint):
            callback.only_end = True
    trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=str(last), weights_only=True)
    return not failures(callbacks)
