"""Compares runs: differences on the held-out pairs that they share, with intervals, and their curves."""

import csv
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from lit_safe.commands.report import report as write_reports
from lit_safe.evaluation.evaluate import Evaluation, differences, oriented
from lit_safe.evaluation.settings import Settings, differing, not_comparable, settings_of
from lit_safe.report.curves import Curves, curves_markdown, curves_table, plot_curves, shown, write_curves
from lit_safe.report.hparams import Entry, write_hparams
from lit_safe.report.plots import plot_comparison, read_curves
from lit_safe.report.safety_compare import evaluations_markdown, is_evaluated, read_evaluation
from lit_safe.report.tables import (
    MAIN,
    PAIRS,
    QUANTITIES,
    REPORT,
    read_tables,
    with_error,
    with_interval,
)
from lit_safe.report.two_axes import axes_markdown, plot_axes, read_axes, write_axes
from lit_safe.runs.loggers.metrics_csv import FILE as CURVES
from lit_safe.runs.move_aside import CONFIG, MARKS
from lit_safe.statistics.clustered import Estimate

log = logging.getLogger(__name__)

WIDTH = 140  # of the table, if there is no terminal


@dataclass(frozen=True)
class Run:
    """The report, settings and tables of a finished run."""

    name: str
    objective: str
    config: Mapping[str, Any]
    settings: Settings
    before: Evaluation
    after: Evaluation


class _Refused(ValueError):
    """The folders cannot be compared. The message tells the user why."""


class _Unlike(_Refused):
    """The held-out pairs of two runs cannot be compared. Their evaluations on suites can."""


def compare(runs: list[str], out: str = "runs/compare", baseline: str | None = None, make_reports: bool = False) -> int:
    """Compare runs: differences paired by pair with errors clustered by prompt, and curves of training.

    Writes ``compare.md``, ``compare.csv``, ``compare.png`` and a TensorBoard hparams entry for each run with a report
    into ``out``, and ``curves.png`` and ``curves.csv`` of every run with a ``metrics.csv``. Runs with a
    ``certificate.json`` and a ``refusals.json`` (from ``certify`` and ``refusals``) are set side by side on two axes,
    unsafe responses and refusals of safe prompts: ``axes.png`` and ``axes.csv``. Runs with an ``evaluation/`` (from
    ``evaluate``) are compared on both axes by prompt, and seeds are averaged; a folder with nothing else, such as the
    evaluation of an exported model, is enough. A run without a report is compared by its curves alone. Other folders
    are skipped with a message, so ``runs/*`` works.

    If a run uses another ``order`` than the baseline, the two responses of each pair are brought into the baseline's
    order. If runs were evaluated with different settings (scorer, decoding, template, seeds), a line names the setting
    and both values. No difference is given for measures that such a setting makes incomparable.

    Args:
        runs: Run folders.
        out: Folder to write.
        baseline: Folder or name of the run that the others are compared with. Null takes the first run.
        make_reports: Whether to write missing reports first, as the command ``report`` does. A run that has ended is
            then evaluated again, which loads its model.

    Returns:
        The exit status: 0, or 1 if a run was left out because it has neither report nor curves, or if a report could
        not be written.

    Raises:
        SystemExit: With one line, if fewer than two runs have a report and fewer than two have curves, a file cannot be
            read, the baseline is not among the runs, or a run shares no held-out pair with the baseline or has other
            labels for a shared pair. The latter two are a warning if two runs have an ``evaluation/``, which is then
            compared.
    """
    try:
        return _compare(runs, out, baseline, make_reports)
    except _Refused as refused:
        raise SystemExit(f"compare: {refused}") from refused


def _compare(runs: list[str], out: str, baseline: str | None, make_reports: bool) -> int:
    folders = [Path(run) for run in runs if not _same(Path(run), Path(out))]
    candidates = [folder for folder in folders if _is_run(folder) or is_evaluated(folder)]
    for folder in folders:
        if folder not in candidates:
            log.info("%s is not a run folder: skipped", folder)
    status = write_reports([str(folder) for folder in candidates if not _has_report(folder)]) if make_reports else 0
    curves = {folder: _curves(folder) for folder in candidates}
    drawn = [folder for folder in candidates if curves[folder]]
    finished = [folder for folder in candidates if _has_report(folder)]
    asked = [folder for folder in candidates if is_evaluated(folder)]
    unfinished = [folder for folder in candidates if folder not in finished and _is_run(folder)]
    if max(len(finished), len(drawn), len(asked)) < 2:
        advice = "".join(f"; {_advice(folder)}" for folder in unfinished)
        raise _Refused(
            f"two runs with a {REPORT} or a {CURVES}, or two evaluations, are needed, and "
            f"{len({*finished, *drawn, *asked})} of {len(runs)} folders have one{advice}"
        )
    for folder in unfinished:
        if folder in drawn or folder in asked:
            what = "curves" if folder in drawn else "answers to suites"
            log.warning("only %s of %s are compared: %s", what, folder, _advice(folder))
        else:
            log.error("%s is left out: %s", folder, _advice(folder))
            status = 1
    kept = [folder for folder in candidates if folder in finished or folder in drawn or folder in asked]
    names = dict(zip(kept, _names(kept), strict=True))
    to = Path(out)
    lines = ["# Runs compared", ""]
    to.mkdir(parents=True, exist_ok=True)
    if len(finished) >= 2:
        try:
            lines = _compare_reports(finished, names, to, baseline)
        except _Unlike as unlike:
            if len(asked) < 2:
                raise
            log.warning("held-out pairs are not compared: %s", unlike)
            lines += [f"Held-out pairs are not compared: {unlike}.", ""]
    elif baseline is not None:
        _find(baseline, kept, list(names.values()))
    if drawn:
        of = [names[folder] for folder in drawn], [curves[folder] for folder in drawn]
        plot_curves(*of, to / "curves.png")
        write_curves(to / "curves.csv", *of)
        lines += curves_markdown(*of, "curves.png")
        if len(finished) < len(kept):
            _terminal().print(curves_table(*of))
    axes = [row for folder in kept if (row := read_axes(folder, names[folder])) is not None]
    if axes:
        plot_axes(axes, to / "axes.png")
        write_axes(axes, to / "axes.csv")
        lines += axes_markdown(axes, "axes.png")
    evaluated = [one for folder in kept if (one := read_evaluation(folder, names[folder])) is not None]
    lines += evaluations_markdown(evaluated) if len(evaluated) > 1 else []
    (to / "compare.md").write_text("\n".join(lines), encoding="utf-8")
    log.info("written to %s%s", to, f" (tensorboard --logdir {to / 'tensorboard'})" if len(finished) >= 2 else "")
    return status


def _compare_reports(folders: Sequence[Path], names: Mapping[Path, str], out: Path, baseline: str | None) -> list[str]:
    """Compare the runs with a report. Returns the lines of ``compare.md``."""
    at = _find(baseline, folders, [names[folder] for folder in folders])
    table = [_read(folder, names[folder]) for folder in (folders[at], *folders[:at], *folders[at + 1 :])]
    remarks: list[str] = []
    for k, run in enumerate(table[1:], 1):
        table[k], said = _in_order_of(run, table[0])
        remarks += [*said, *_unlike(run, table[0])]
    for remark in remarks:
        log.warning("%s", remark)
    found = [_difference(run, table[0]) for run in table]
    out.mkdir(parents=True, exist_ok=True)
    _write_csv(out / "compare.csv", table, found)
    before, after = table[0].before.summary(), [run.after.summary() for run in table]
    plot_comparison([run.name for run in table], before, after, out / "compare.png")
    entries = [Entry(run.name, run.objective, run.config, run.after.summary()) for run in table]
    write_hparams(out / "tensorboard", entries)
    _terminal().print(_differences(table, found))
    return _markdown(table, found, remarks)


def _terminal() -> Console:
    terminal = Console()
    terminal.width = terminal.width if terminal.is_terminal else WIDTH
    return terminal


def _has_report(folder: Path) -> bool:
    return (folder / REPORT).exists() and (folder / PAIRS).exists()


def _curves(folder: Path) -> Curves:
    """The curves of a run that the comparison shows; empty if it has none of them.

    Raises:
        _Refused: If ``metrics.csv`` cannot be read.
    """
    try:
        found = read_curves(folder / CURVES)
    except (OSError, ValueError, KeyError) as error:
        raise _Refused(f"{folder / CURVES} cannot be read ({' '.join(str(error).split())}): it is damaged") from error
    return found if shown([found]) else {}


def _is_run(folder: Path) -> bool:
    return any((folder / mark).exists() for mark in (*MARKS, REPORT))


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' names, or their paths below the folder that holds them all, if two names are equal."""
    whole = [folder.resolve() for folder in folders]
    short = [folder.name for folder in whole]
    if len(set(short)) == len(short):
        return short
    shared = Path(os.path.commonpath(whole))
    return [path.relative_to(shared).as_posix() for path in whole]


def _find(baseline: str | None, folders: Sequence[Path], names: Sequence[str]) -> int:
    if baseline is None:
        return 0
    for k, folder in enumerate(folders):
        if baseline == names[k] or _same(Path(baseline), folder):
            return k
    raise _Refused(f"the baseline {baseline!r} is not among the runs with a report: {', '.join(names)}")


def _advice(folder: Path) -> str:
    """How to write the report of a run that has none."""
    return f"{folder} has no {REPORT}: `python train.py report {folder}` writes it"


def _read(folder: Path, name: str) -> Run:
    """A run's report, settings and tables.

    Raises:
        _Refused: If a file cannot be read or is not in the format that a run writes.
    """
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8")) if (folder / CONFIG).exists() else {}
        return Run(name, report["objective"]["text"], config or {}, settings_of(report), *read_tables(folder))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        cause = f"it lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise _Refused(
            f"the report in {folder} cannot be read ({cause}): `python train.py report {folder}` writes it again"
        ) from error


def _in_order_of(run: Run, baseline: Run) -> tuple[Run, list[str]]:
    """The run with each pair's responses in the baseline's order, and a remark for the user if any were exchanged."""
    try:
        other_order = "order" in differing(baseline.settings, run.settings)
        found = oriented((run.before, run.after), baseline.after, other_order=other_order)
    except ValueError as error:
        raise _Unlike(f"{run.name} and {baseline.name}: {error}") from error
    if not found.exchanged and not found.unclear:
        return run, []
    before, after = found.evaluations
    unclear = (
        f", {found.unclear} are left out: labels and lengths do not determine their order" if found.unclear else ""
    )
    said = (
        f"order: {found.exchanged} of {found.shared} shared pairs call the other response chosen in {run.name}: they "
        f"are counted in the order of {baseline.name}{unclear}; pairs only in {run.name} are left out"
    )
    return replace(run, before=before, after=after), [said]


def _unlike(run: Run, baseline: Run) -> list[str]:
    """A line for each setting that differs, with both values."""
    differ = differing(baseline.settings, run.settings)
    lines = []
    for name, (theirs, ours) in differ.items():
        without = sorted(QUANTITIES[measure].short for measure in QUANTITIES if not_comparable(measure, {name: None}))
        effect = f"; no difference of {', '.join(without)} is given" if without else ""
        lines.append(f"{name}: {theirs} in {baseline.name}, {ours} in {run.name}{effect}")
    known = set(baseline.settings), set(run.settings)
    for one, unknown in ((baseline, known[1] - known[0]), (run, known[0] - known[1])):
        if unknown:
            lines.append(f"{one.name} does not record {', '.join(sorted(unknown))}: it is unknown whether they differ")
    return lines


def _difference(run: Run, baseline: Run) -> dict[str, Estimate]:
    found = differences(run.after, baseline.after)
    if "logps/accuracies" not in found:
        raise _Unlike(
            f"{run.name} and {baseline.name} share no held-out pair: they were evaluated on other data, or by versions "
            "of lit_safe that name pairs differently"
        )
    differ = differing(baseline.settings, run.settings)
    return {name: estimate for name, estimate in found.items() if not not_comparable(name, differ)}


def _differences(runs: Sequence[Run], found: Sequence[Mapping[str, Estimate]]) -> Table:
    after = [run.after.summary() for run in runs]
    measures = [name for name in MAIN if any(name in summary for summary in after)]
    title = f"after training, mean [95 %]; below it the paired difference from {runs[0].name} [95 %]"
    table = Table(title=title, show_lines=True)
    for heading in ("run and objective", *(f"{QUANTITIES[name].short} ({QUANTITIES[name].unit})" for name in measures)):
        table.add_column(heading, overflow="fold")
    start = runs[0].before.summary()
    table.add_row("(before training)", *(with_error(n, start[n]) if n in start else "n/a" for n in measures))
    for k, run in enumerate(runs):
        cells = []
        for name in measures:
            cell = with_error(name, after[k][name]) if name in after[k] else "n/a"
            shown = k > 0 and name in found[k]
            cells.append(f"{cell}\n{with_interval(name, found[k][name])}" if shown else cell)
        table.add_row(f"{run.name}\n{run.objective}", *cells)
    return table


def _markdown(runs: Sequence[Run], found: Sequence[Mapping[str, Estimate]], remarks: Sequence[str]) -> list[str]:
    after = [run.after.summary() for run in runs]
    names = [name for name in QUANTITIES if any(name in summary for summary in after)]
    heads = " | ".join(run.name for run in runs)
    lines = ["# Runs compared", "", "| run | objective |", "|---|---|"]
    lines += [f"| {run.name} | `{run.objective}` |" for run in runs]
    if remarks:
        lines += ["", "## Settings that differ", "", *(f"- {remark}" for remark in remarks)]
    lines += ["", "![values after training](compare.png)", "", "## After training, mean [95 %]", ""]
    lines += [f"| | before ({runs[0].name}) | {heads} |", "|---" * (len(runs) + 2) + "|"]
    start = runs[0].before.summary()
    for name in names:
        cells = [with_error(name, summary[name]) if name in summary else "n/a" for summary in (start, *after)]
        lines.append(f"| {QUANTITIES[name].label} ({QUANTITIES[name].unit}) | {' | '.join(cells)} |")
    lines += ["", f"## Paired differences from {runs[0].name} [95 %]", ""]
    lines += [f"| | {' | '.join(run.name for run in runs[1:])} |", "|---" * len(runs) + "|"]
    for name in names:
        cells = [f"{with_interval(name, d[name])} {d[name].verdict}" if name in d else "n/a" for d in found[1:]]
        lines.append(f"| {QUANTITIES[name].label} ({QUANTITIES[name].unit}) | {' | '.join(cells)} |")
    shared = ", ".join(
        f"{d['logps/accuracies'].count} ({run.name})" for run, d in zip(runs[1:], found[1:], strict=True)
    )
    lines += [
        "",
        f"Held-out pairs shared with {runs[0].name}: {shared}. Errors are clustered by prompt. The intervals are not "
        "adjusted for multiple comparisons: among many, some exclude 0 by chance. A run has one seed; the intervals "
        "do not include the variation between seeds of one objective.",
        "",
    ]
    return lines


def _write_csv(path: Path, runs: Sequence[Run], found: Sequence[Mapping[str, Estimate]]) -> None:
    head = ("run", "objective", "measure", "mean", "stderr", "count", "prompts",
            "difference", "difference_stderr", "low", "high", "shared", "shared_prompts")  # fmt: skip
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        for run, difference in zip(runs, found, strict=True):
            for name, estimate in run.after.summary().items():
                known = difference.get(name, Estimate(math.nan, math.nan, 0, 0))
                paired = (known.mean, known.stderr, *known.interval, known.count, known.clusters)
                writer.writerow([run.name, run.objective, name, *estimate[:4], *paired])
