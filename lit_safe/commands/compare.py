"""Compares finished runs on the held-out pairs that they share: differences of all measures, with intervals."""

import csv
import json
import logging
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table
from torch.utils.tensorboard import SummaryWriter

from lit_safe.evaluation.evaluate import Evaluation, differences, oriented
from lit_safe.evaluation.settings import Settings, differing, not_comparable, settings_of
from lit_safe.report.plots import plot_comparison
from lit_safe.report.tables import (
    MAIN,
    PAIRS,
    QUANTITIES,
    REPORT,
    read_tables,
    with_error,
    with_interval,
)
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


def compare(runs: list[str], out: str = "runs/compare", baseline: str | None = None) -> int:
    """Compare finished runs in one table and one figure: differences paired by pair, errors clustered by prompt.

    Writes ``compare.md``, ``compare.csv``, ``compare.png`` and a TensorBoard hparams entry for each run into ``out``.
    Other folders are skipped with a message, so ``runs/*`` works.

    If a run uses another ``order`` than the baseline, the two responses of each pair are brought into the baseline's
    order. If runs were evaluated with different settings (scorer, decoding, template, seeds), a line names the setting
    and both values. No difference is given for measures that such a setting makes incomparable.

    Args:
        runs: Run folders, each with the report that the BeforeAfter callback wrote.
        out: Folder to write.
        baseline: Folder or name of the run that the others are compared with. Null takes the first run.

    Returns:
        The exit status: 0, or 1 if a run was left out because it has no report.

    Raises:
        SystemExit: With one line, if fewer than two runs have a report, a report cannot be read, the baseline is not
            among the runs, or a run shares no held-out pair with the baseline or has other labels for a shared pair.
    """
    try:
        return _compare(runs, out, baseline)
    except _Refused as refused:
        raise SystemExit(f"compare: {refused}") from refused


def _compare(runs: list[str], out: str, baseline: str | None) -> int:
    folders = [Path(run) for run in runs if not _same(Path(run), Path(out))]
    candidates = [folder for folder in folders if _is_run(folder)]
    for folder in folders:
        if folder not in candidates:
            log.info("%s is not a run folder: skipped", folder)
    unfinished = [folder for folder in candidates if not ((folder / REPORT).exists() and (folder / PAIRS).exists())]
    finished = [folder for folder in candidates if folder not in unfinished]
    if len(finished) < 2:
        advice = "".join(f"; {_advice(folder)}" for folder in unfinished)
        raise _Refused(
            f"two runs with a {REPORT} are needed, and {len(finished)} of {len(runs)} folders have one{advice}"
        )
    for folder in unfinished:
        log.error("%s is left out: %s", folder, _advice(folder))
    names = _names(finished)
    at = _find(baseline, finished, names)
    order = [at, *(k for k in range(len(finished)) if k != at)]
    table = [_read(finished[k], names[k]) for k in order]
    remarks: list[str] = []
    for k, run in enumerate(table[1:], 1):
        table[k], said = _in_order_of(run, table[0])
        remarks += [*said, *_unlike(run, table[0])]
    for remark in remarks:
        log.warning("%s", remark)
    found = [_difference(run, table[0]) for run in table]
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    _write_csv(folder / "compare.csv", table, found)
    (folder / "compare.md").write_text(_markdown(table, found, remarks), encoding="utf-8")
    before, after = table[0].before.summary(), [run.after.summary() for run in table]
    plot_comparison([run.name for run in table], before, after, folder / "compare.png")
    _write_hparams(folder / "tensorboard", table)
    terminal = Console()
    terminal.width = terminal.width if terminal.is_terminal else WIDTH
    terminal.print(_terminal(table, found))
    log.info("written to %s (tensorboard --logdir %s)", folder, folder / "tensorboard")
    return int(bool(unfinished))


def _is_run(folder: Path) -> bool:
    return any((folder / mark).exists() for mark in (*MARKS, REPORT))


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' names, or their paths if two names are equal."""
    short = [folder.resolve().name for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]


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
        raise _Refused(f"{run.name} and {baseline.name}: {error}") from error
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
        raise _Refused(
            f"{run.name} and {baseline.name} share no held-out pair: they were evaluated on other data, or by versions "
            "of lit_safe that name pairs differently"
        )
    differ = differing(baseline.settings, run.settings)
    return {name: estimate for name, estimate in found.items() if not not_comparable(name, differ)}


def _terminal(runs: Sequence[Run], found: Sequence[Mapping[str, Estimate]]) -> Table:
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


def _markdown(runs: Sequence[Run], found: Sequence[Mapping[str, Estimate]], remarks: Sequence[str]) -> str:
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
    return "\n".join(lines)


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


def _write_hparams(folder: Path, runs: Sequence[Run]) -> None:
    """Write one entry per run: the settings that differ between the runs, and every measure after training."""
    shutil.rmtree(folder, ignore_errors=True)  # otherwise entries of an earlier comparison would appear twice
    flat = [dict(_leaves(run.config)) for run in runs]
    differing = [key for key in dict.fromkeys(k for f in flat for k in f) if len({str(f.get(key)) for f in flat}) > 1]
    for run, leaves in zip(runs, flat, strict=True):
        hparams = {"objective": run.objective, **{key: _plain(leaves.get(key)) for key in differing}}
        metrics = {f"after/{name}": estimate.mean for name, estimate in run.after.summary().items()}
        with SummaryWriter(str(folder / run.name.replace("/", "_"))) as writer:
            writer.add_hparams(hparams, metrics, run_name=".")


def _leaves(config: object, key: str = "") -> Iterator[tuple[str, object]]:
    """(dotted key, value) of each value in a nested configuration. Positions in a list are keys."""
    items: Iterator[tuple[object, object]] | None = None
    if isinstance(config, Mapping):
        items = iter(config.items())
    elif isinstance(config, list):
        items = iter(enumerate(config))
    if items is None:
        yield key, config
        return
    for name, value in items:
        yield from _leaves(value, f"{key}.{name}" if key else str(name))


def _plain(value: object) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)
