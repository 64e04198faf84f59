"""What came out of a run, in a table of a few lines."""

import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import Trainer

from lit_safe.constraint.dual_ascent import dual_of
from lit_safe.protocols.trainer import connected
from lit_safe.report.contents import FIGURE, PAGE, limit_of
from lit_safe.report.outcome import MEASURES, found
from lit_safe.report.tables import QUANTITIES, REPORT, estimate_from_json, number, with_error
from lit_safe.rollouts.scoring import declared_range
from lit_safe.runs.checkpoints import BEST, FOLDER, LAST
from lit_safe.runs.end_of_run import failures
from lit_safe.runs.run_folder import CONFIG
from lit_safe.screen.opening import objective_in_words
from lit_safe.training.module import PreferenceAlignment
from lit_safe.training.score_model import ScoreModel
from lit_safe.training.stepping import StepModule
from lit_safe.words import duration, rows, told_apart


def closing(
    trainer: Trainer,
    module: StepModule,
    report: Mapping[str, Any] | None,
    seconds: float,
    start: Sequence[float],
) -> list[str]:
    """At most 15 lines: objective, limit and verdict, multiplier, accuracy, unsafe share, drift, time, files, next.

    Args:
        trainer: Of the run that has ended.
        module: What it ships.
        report: Its ``report.json``, where it has one.
        seconds: From the first step to the end, evaluations included.
        start: The multiplier when training began or went on, [] or [C] as a list.
    """
    preference = isinstance(module, PreferenceAlignment)
    folder = Path(trainer.default_root_dir)
    entries = [
        ("objective", objective_in_words(module)),
        *(_limits(trainer) if preference else []),
        ("multiplier", _multiplier(module, report, start) if isinstance(module, PreferenceAlignment) else ""),
        ("accuracy", _accuracy(trainer, module, report)),
        ("unsafe", _change("unsafe", trainer, report)),
        ("drift", _change("kl_per_token", trainer, report)),
        ("took", _took(trainer, report, seconds)),
        ("lies in", f"{folder}: {', '.join(_there(folder))}"),
        ("failed", "; ".join(one.partition(". ")[0] for one in failures(connected(trainer).callbacks))),
        ("next", _next(trainer, module, folder)),
    ]
    return rows("what came out", entries)


def _accuracy(trainer: Trainer, module: StepModule, report: Mapping[str, Any] | None) -> str:
    if isinstance(module, ScoreModel):
        return ""  # its quality is told when it is measured
    return _change("accuracy", trainer, report) or "not measured: no validation and no report"


def _next(trainer: Trainer, module: StepModule, folder: Path) -> str:
    failed = bool(failures(connected(trainer).callbacks))
    if isinstance(module, ScoreModel) and not failed:
        return f"score texts with the folder {folder / 'score_model'} (docs/scorers.md)"
    return next_command(folder, failed=failed, certify=certify_options(trainer))


def certify_options(trainer: Trainer) -> list[str] | None:
    """Options of ``certify`` for a run with a limit. None if the run estimated no cost of texts, or holds nothing out.

    The range of costs is that of ``dual.margin_for``. Without one, the command takes the range that the scorer
    declares; if it declares none, the options have a placeholder.
    """
    dual = dual_of(trainer)
    cost = None if dual is None else getattr(dual.estimator, "cost", None)
    if dual is None or dual.standing is None or cost is None:
        return None
    if not getattr(connected(trainer).datamodule, "held_out", True):
        return None
    ends = dual.margin.certificate.cost_range
    if ends is not None:
        return ["--cost_range", f"[{ends[0]:g}, {ends[1]:g}]"]
    return [] if declared_range(cost) is not None else ["--cost_range", "[LOW, HIGH]"]


def _limits(trainer: Trainer) -> list[tuple[str, str]]:
    """One entry a constraint, four at most: which limit, met or not, and by which bound."""
    limit = limit_of(trainer, dual_of(trainer))
    if not limit["constraints"]:
        return [("limit", f"undecided: {limit['unknown']}")]
    entries = []
    for row in limit["constraints"]:
        name = f" on {row['constraint']}" if len(limit["constraints"]) > 1 else ""
        upper = row["upper"]
        cost, bound = told_apart([math.nan if value is None else value for value in (row["cost"], upper)])
        told = "its error is not known" if upper is None else f"95 % one-sided bound {bound}"
        entries.append(("limit", f"{row['limit']:g}{name}: {row['verdict']}; E[cost] {cost}, {told}"))
    more = len(entries) - 4
    return entries if more <= 0 else [*entries[:3], ("limit", f"{more + 1} more constraints: see report.md")]


def _multiplier(module: PreferenceAlignment, report: Mapping[str, Any] | None, start: Sequence[float]) -> str:
    if not module.objective.reads_multiplier:
        return ""
    if report is not None:  # which knows it of a resumed run too
        first = report["training"]["multiplier"][0]
        start = first if isinstance(first, list) else [first]
    end = module.multiplier.reshape(-1).tolist()
    steps = [told_apart([was, now]) for was, now in zip(start, end, strict=True)]
    return "λ " + ", ".join(f"stayed at {now}" if was == now else f"{was} → {now}" for was, now in steps)


def _change(name: str, trainer: Trainer, report: Mapping[str, Any] | None) -> str:
    """Before and after with its 95 % interval from a report; else what was last logged."""
    key = MEASURES[name].report
    quantity = QUANTITIES[key]
    unit = quantity.unit
    if report is not None and key in report["metrics"]:
        entry = report["metrics"][key]
        before, after = (estimate_from_json(entry[when]) for when in ("before", "after"))
        return f"{number(key, before.mean)} → {with_error(key, after)} {unit}: {quantity.label}"
    value = found(name, trainer, None)
    return "" if value != value else f"{number(key, value)} {unit} when last measured: {quantity.label}"


def _took(trainer: Trainer, report: Mapping[str, Any] | None, seconds: float) -> str:
    text = f"{duration(seconds)} for {trainer.global_step:,} steps"
    rate = float(trainer.callback_metrics.get("train/perf/tokens_per_s", float("nan")))
    if report is not None:
        training, evaluation = report["training"], report["evaluation"]
        rate = training["tokens_per_s"]
        evaluated = evaluation["seconds_before"] + evaluation["seconds_after"]
        text += f" ({duration(training['seconds'])} in steps, {duration(evaluated)} in evaluations)"
    return text if rate != rate else f"{text}, {rate:,.0f} tokens/s in steps"


def _there(folder: Path) -> list[str]:
    names = (PAGE, REPORT, FIGURE, f"{FOLDER}/{BEST}", f"{FOLDER}/{LAST}", "metrics.csv", "tensorboard", CONFIG)
    return [name for name in names if (folder / name).exists()]


def next_command(folder: Path, *, failed: bool, certify: Sequence[str] | None = None) -> str:
    """The command that fits a run folder: the missing report, else a certificate of its limit, the export.

    Without a limit, a comparison with the latest other run is first.

    Args:
        folder: Of the run; without ``config.yaml`` or a checkpoint there is no command.
        failed: Whether something after training went wrong.
        certify: Options of ``certify``, if the run has a limit.
    """
    config, checkpoint = folder / CONFIG, folder / FOLDER / LAST
    if not (config.exists() and checkpoint.exists()):
        return ""
    if failed:
        return _command("report", folder)
    best = checkpoint.with_name(BEST)
    policy = ("-c", config, "--ckpt_path", best if best.exists() else checkpoint)
    export = _command("export", *policy, "--out", f"{folder}-export")
    if certify is not None:
        return f"{_command('certify', *policy, *certify)}, or {export}"
    others = [path.parent for path in folder.resolve().parent.glob(f"*/{REPORT}") if path.parent != folder.resolve()]
    if not others or not (folder / REPORT).exists():
        return export
    latest = max(others, key=lambda other: (other / REPORT).stat().st_mtime)
    return f"{_command('compare', folder.parent / latest.name, folder)}, or {export}"


def _command(*words: object) -> str:
    program = Path(sys.argv[0])
    installed = {"lit-safe": ["lit-safe"], "lit_safe/__main__.py": ["python", "-m", "lit_safe"]}
    start = installed.get(program.name) or installed.get("/".join(program.parts[-2:])) or ["python", "train.py"]
    return shlex.join([*start, *map(str, words)])
