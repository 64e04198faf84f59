"""Runs of the oracle world in one table: the figures of each objective and of its optimum.

    python -m data.oracle.study.report runs/oracle

reads ``runs/oracle/<objective>/seed_<k>/oracle.json`` and writes ``report.md``, ``report.json`` and ``report.png``
there. Every number in them comes from those files.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.oracle.study.plots import label, plot_report
from data.oracle.study.results import Row, Run, Summary, over_seeds, read_runs, summarise

AIMS = {
    "tilt": "the optimum without a limit",
    "tilt_at_multiplier": "the optimum at its multiplier",
    "tilt_at_limit": "the optimum under the limit",
    "rectified_at_limit": "the optimum under the limit on max(cost, 0)",
    "masked": "the optimum without unsafe responses",
    "population": "the minimiser of its population loss",
    "per_token": "the minimiser of its population loss",
    "none": "no optimum known",
}
DIVERGES = "diverges: no optimum to compare with"
POPULATION = " at multiplier 0, which is DPO's population loss: preference probabilities instead of drawn preferences"
NO_ANCHOR = ("NoneType", "Anchor")  # ``Anchor`` is the base class, which adds nothing


def write_report(folder: Path, runs: Sequence[Run]) -> None:
    """Write ``report.md``, ``report.json``, ``report.png`` and a PNG for each panel.

    Args:
        folder: Created if it does not exist.
        runs: Results of ``OracleMeasure``, each with a ``name``. Runs with the same name are seeds of one objective.

    Raises:
        ValueError: If there is no run, or the runs belong to different worlds.
    """
    if not runs:
        raise ValueError("no runs to report")
    worlds = {json.dumps([run["world"], run["constraints"], run["beta"]], sort_keys=True) for run in runs}
    if len(worlds) > 1:
        raise ValueError(f"runs of different worlds cannot share a table: {'; '.join(sorted(worlds))}")
    rows = summarise(runs)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(
        json.dumps(_to_json(rows, runs), indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )
    (folder / "report.md").write_text(markdown(rows), encoding="utf-8")
    plot_report(folder, runs)


def markdown(rows: Sequence[Row]) -> str:
    """The report as text: a description of the study, and two tables."""
    first = rows[0].runs[0]
    machine, world = first["machine"], first["world"]
    costs = _cost_names(first)
    multipliers = [name for name in rows[0].figures if name.startswith("multiplier")]
    lines = [
        "# The oracle world",
        "",
        "Every figure is exact: each policy's probability of every response was enumerated, not sampled. ± is one "
        "standard error of the mean over seeds, not an interval. `aim` is the optimum of the objective in the row "
        "above, computed in float64.",
        "",
        f"- world: {', '.join(f'{key} {value}' for key, value in world.items())}; beta {first['beta']:g}; "
        f"constraints {', '.join(first['constraints'])}",
        *(
            f"- limit {limit} on E[cost]"
            for limit in dict.fromkeys(_limit(run) for r in rows for run in r.runs)
            if limit
        ),
        f"- machine: {machine['cpus']} CPUs, {machine['threads']} threads a run, {machine['device']}, torch "
        f"{machine['torch']}, lightning {machine['lightning']}",
        "",
        "![reward and cost, multiplier, malformed mass, regret](report.png)",
        "",
        "## All text",
        "",
        _head(["", "reward", *costs, "unsafe %", "malformed %", "worst prompt %", "KL", "regret %", *multipliers, "s"]),
    ]
    columns = [
        _number("reward"), *map(_number, costs), _percent("unsafe"), _percent("malformed"),
        _worst("malformed_worst"), _number("kl"), _percent("regret_share"), *map(_number, multipliers),
    ]  # fmt: skip
    reference = over_seeds([run["reference"] for row in rows for run in row.runs])
    lines.append(_line("reference", columns, reference, "", lonely=True))
    for row in rows:
        lines.append(_line(_title(row), columns, row.figures, f"{row.figures['seconds'].mean:.0f}"))
        lines.append(_line(f"*aim: {_told(row)}*", columns, row.at_optimum, "", lonely=True))
    lines += [
        "",
        "## Given that the text is well-formed",
        "",
        _head(["", "reward", *costs, "unsafe %", "KL", "regret %"]),
    ]
    given = [
        _number("wellformed/reward"), *(_number(f"wellformed/{cost}") for cost in costs),
        _percent("wellformed/unsafe"), _number("wellformed/kl"), _percent("wellformed/regret_share"),
    ]  # fmt: skip
    lines.append(_line("reference", given, reference, None, lonely=True))
    for row in rows:
        lines.append(_line(_title(row), given, row.figures, None))
        lines.append(_line(f"*aim: {_told(row)}*", given, row.at_optimum, None, lonely=True))
    lines += [
        "",
        "Reward is in nats, cost in its own units (> 0 is unsafe). Malformed text has a defined reward and cost and "
        "counts in every figure of the first table. `worst prompt` is the largest malformed mass at any prompt of any "
        "seed. KL (nats, from the reference) is over the well-formed responses and one cell for all other text: a "
        "lower bound. Regret is J(aim) - J(policy) as a share of J(aim) - J(reference), where J = E[r] - λ E[c] - "
        "beta KL. For the aim without unsafe responses it is conditional on the responses that the aim may give; "
        "`unsafe` is the mass of all others. The frontier is reward and cost of the optima for all λ >= 0. A policy "
        "further from the reference than the optima may lie above it. s is seconds of training without measurements.",
        "",
        "## Runs",
        "",
    ]
    for row in rows:
        what = row.runs[0]["objective"]["text"] + (POPULATION if _is_dpo(row) else "")
        lines.append(f"- **{row.name}**: {what}; {_anchor(row.runs[0])}")
        lines += [f"  - seed {run['seed']}: `{run['command']}`" for run in row.runs]
    return "\n".join(lines) + "\n"


Cell = Callable[[Mapping[str, Summary], bool], str]


def _number(name: str) -> Cell:
    return lambda figures, lonely: _spell(figures.get(name), 1.0, 3, lonely)


def _percent(name: str) -> Cell:
    return lambda figures, lonely: _spell(figures.get(name), 100.0, 2, lonely)


def _worst(name: str) -> Cell:
    return lambda figures, lonely: _spell(
        Summary(figures[name].most, None, None) if name in figures else None, 100.0, 2, lonely
    )


def _spell(summary: Summary | None, scale: float, digits: int, lonely: bool) -> str:
    """``lonely`` omits the error, for values that are the same for all seeds."""
    if summary is None or summary.mean is None:
        return "-"
    text = f"{scale * summary.mean:z.{digits}f}"
    if lonely or summary.stderr is None:
        return text
    error = scale * summary.stderr
    if error == 0:
        return f"{text} (each seed)"
    rounded = f"{error:.{digits}f}"
    return f"{text} ± {rounded if float(rounded) else f'{error:.1g}'}"


def _line(
    title: str, columns: Sequence[Cell], figures: Mapping[str, Summary], last: str | None, lonely: bool = False
) -> str:
    cells = [title, *(column(figures, lonely) for column in columns), *([] if last is None else [last])]
    return f"| {' | '.join(cells)} |"


def _head(names: Sequence[str]) -> str:
    return f"| {' | '.join(name.replace('_', ' ') for name in names)} |\n|{'---|' * len(names)}"


def _title(row: Row) -> str:
    count = len(row.seeds)
    what = "; ConstrainedDPO with soft labels at λ = 0" if _is_dpo(row) else ""
    return f"**{label(row.name)}** ({count} seed{'s' if count > 1 else ''}{what})"


def _told(row: Row) -> str:
    return DIVERGES if any(run.get("diverges") for run in row.runs) else AIMS[row.aim]


def _is_dpo(row: Row) -> bool:
    """Whether the row is equivalent to DPO."""
    return all(
        run["objective"]["name"] == "ConstrainedDPO"
        and "labels='soft'" in run["objective"]["text"]
        and not any(point["multiplier"] is None or any(point["multiplier"]) for point in run["multiplier_path"])
        for run in row.runs
    )


def _anchor(run: Run) -> str:
    anchor = run["anchor"]
    return "no anchor" if anchor["name"] in NO_ANCHOR else f"anchor {anchor['text']}"


def _limit(run: Run) -> str:
    limit = run["limit"]
    return "" if limit is None else ", ".join(f"{bound:g}" for bound in np.atleast_1d(limit))


def _cost_names(run: Run) -> list[str]:
    return [name for name in run["final"] if name.startswith("cost")]


def _to_json(rows: Sequence[Row], runs: Sequence[Run]) -> dict[str, Any]:
    first = runs[0]
    return {
        **{key: first[key] for key in ("world", "constraints", "beta", "machine")},
        "objectives": {
            row.name: {
                "objective": row.runs[0]["objective"],
                "aim": row.aim,
                "seeds": list(row.seeds),
                "measured": {name: summary._asdict() for name, summary in row.figures.items()},
                "at_optimum": {name: summary._asdict() for name, summary in row.at_optimum.items()},
            }
            for row in rows
        },
        "runs": [{k: run[k] for k in ("name", "seed", "command", "limit", "final", "multiplier")} for run in runs],
    }


if __name__ == "__main__":
    where = Path(sys.argv[1])
    write_report(where, read_runs(where))
