"""Safety evaluations of several runs beside each other: both axes, differences by prompt, and means over seeds.

Letters: n responses, S seeds, G prompts.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lit_safe.constraint.certificate.holm import holm
from lit_safe.report.safety import FOLDER, KIND, REPORT, RESPONSES
from lit_safe.report.safety_page import measure_words
from lit_safe.statistics.clustered import Estimate, clustered_mean, paired_difference
from lit_safe.statistics.pooled import over_seeds
from lit_safe.statistics.sign_flip import LEVEL, sign_flip_p

Floats = npt.NDArray[np.float64]
Key = tuple[str, str, bool, int]
"""Suite, row, whether it is harmful, number of the response."""

FIXED = ("temperature", "max_new_tokens", "seed", "stop_ids", "precision", "template")
"""Settings of decoding that must agree for a comparison."""


class Axis(NamedTuple):
    """One measure of one run: the value and the prompt of each response."""

    value: dict[Key, float]
    prompt: dict[Key, int]


class Evaluated(NamedTuple):
    """The evaluation of one run: its measures, ``(harmful, name)`` → values, and the settings that must agree."""

    name: str
    axes: dict[tuple[bool, str], Axis]
    settings: Mapping[str, Any]


def is_evaluated(folder: Path) -> bool:
    """Whether a folder has the files of an evaluation."""
    return all((folder / FOLDER / name).is_file() for name in (REPORT, RESPONSES))


def read_evaluation(folder: Path, name: str) -> Evaluated | None:
    """The evaluation in a run folder; None if it has none.

    Raises:
        ValueError: If its files are damaged or of another kind. The message names the folder.
    """
    if not is_evaluated(folder):
        return None
    place = folder / FOLDER
    import pyarrow.parquet

    try:
        report = json.loads((place / REPORT).read_text(encoding="utf-8"))
        rows = pyarrow.parquet.read_table(place / RESPONSES).to_pylist()
        if report["kind"] != KIND:
            raise ValueError(f"its kind is {report['kind']}")
        judges = {column: judge["name"] for column, judge in report["judges"].items()}
        settings = {**{key: report["decoding"][key] for key in FIXED}, "judges": judges}
        axes: dict[tuple[bool, str], Axis] = {}
        for row in rows:
            if row["model"] == "policy":
                _add(axes, row, judges)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(f"{place} holds no evaluation that can be read ({error}): run evaluate again") from None
    return Evaluated(name, axes, settings)


def evaluations_markdown(runs: Sequence[Evaluated]) -> list[str]:
    """The lines of the comparison: each run, its difference from the first one, and the means over seeds."""
    lines = [
        "## Safety evaluations",
        "",
        f"Differences are from {runs[0].name}, paired by response and clustered by prompt, in points. p is that of the "
        f"exact test by prompt. 'Told apart' follows Holm's method over the runs of an axis at {100 * LEVEL:g} %.",
        "",
        "| axis | run | % [95 %] | difference | p | |",
        "|---|---|---|---|---|---|",
    ]
    for key in dict.fromkeys(key for run in runs for key in run.axes):
        lines += _rows(key, runs)
    seeds = _over_seeds(runs)
    if seeds:
        lines += ["", "Means over seeds, with an interval over seeds and prompts:", "", "| axis | runs | % [95 %] | |"]
        lines += ["|---|---|---|---|", *seeds]
    return [*lines, ""]


def _add(axes: dict[tuple[bool, str], Axis], row: Mapping[str, Any], judges: Mapping[str, str]) -> None:
    harmful = bool(row["harmful"])
    key = (str(row["suite"]), str(row["row"]), harmful, int(row["sample"]))
    measures = {"complied" if harmful else "refused": row["refusal"]}
    measures |= {column: row[column] for column in judges if column.startswith("unsafe/") and harmful}
    for name, score in measures.items():
        if score is None:
            continue
        axis = axes.setdefault((harmful, name), Axis({}, {}))
        axis.value[key] = float((score > 0) != (name == "complied"))
        axis.prompt[key] = int(row["prompt_id"])


def _rows(key: tuple[bool, str], runs: Sequence[Evaluated]) -> list[str]:
    first = runs[0]
    cells: dict[str, list[str]] = {}
    p: dict[str, float] = {}
    for run in runs:
        if key not in run.axes:
            continue
        own = run.axes[key]
        mean = clustered_mean(list(own.value.values()), list(own.prompt.values()), share=True)
        cells[run.name] = [percent(mean), "", ""]
        if run is first or key not in first.axes:
            continue
        unlike = [name for name in run.settings if run.settings[name] != first.settings[name]]
        shared = [k for k in own.value if k in first.axes[key].value]
        if unlike or not shared:
            why = f"not compared: other {', '.join(unlike)}" if unlike else "no prompts in common"
            cells[run.name] = [percent(mean), why, ""]
            continue
        now, was = (np.array([axis.value[k] for k in shared]) for axis in (own, first.axes[key]))
        prompt_n = np.array([own.prompt[k] for k in shared])
        p[run.name] = sign_flip_p(np.bincount(np.unique(prompt_n, return_inverse=True)[1], now - was))
        difference = percent(paired_difference(now, was, prompt_n, share=True), signed=True)
        cells[run.name] = [percent(mean), difference, f"{p[run.name]:.3g}"]
    steps = holm(p, LEVEL)
    verdict = {name: "told apart" if step.rejected else "not told apart" for name, step in steps.items()}
    return [
        f"| {axis_words(key)} | {name} | {' | '.join(row)} | {verdict.get(name, '')} |" for name, row in cells.items()
    ]


def _over_seeds(runs: Sequence[Evaluated]) -> list[str]:
    """A line for each axis of runs whose names differ in the last part alone, such as ``c_dpo/seed_0``."""
    families: dict[str, list[Evaluated]] = {}
    for run in runs:
        families.setdefault(run.name.rpartition("/")[0], []).append(run)
    lines = []
    for name, members in families.items():
        alike = all(run.settings == members[0].settings for run in members)
        if not name or len(members) < 2 or not alike:
            continue
        for key in members[0].axes:
            shared = [axis_of for run in members if (axis_of := run.axes.get(key)) is not None]
            if len(shared) == len(members) and (value_SG := _by_prompt(shared)) is not None:
                mean = over_seeds(value_SG)
                if not mean.stderr > 0:  # nothing varies: that is no certainty about other seeds and prompts
                    mean = mean._replace(low=math.nan, high=math.nan)
                lines.append(
                    f"| {axis_words(key)} | {name} | {mean.text(100, 1)} | {mean.seeds} seeds, {mean.prompts} prompts |"
                )
    return lines


def _by_prompt(axes: Sequence[Axis]) -> Floats | None:
    """[S, G] shares of the prompts that all runs answered; None if there are none."""
    table = []
    for axis in axes:
        by_prompt: dict[int, list[float]] = {}
        for key, value in axis.value.items():
            by_prompt.setdefault(axis.prompt[key], []).append(value)
        table.append({prompt: float(np.mean(values)) for prompt, values in by_prompt.items()})
    prompts = [prompt for prompt in table[0] if all(prompt in row for row in table)]
    return np.array([[row[prompt] for prompt in prompts] for row in table]) if prompts else None


def axis_words(key: tuple[bool, str]) -> str:
    """An axis in words."""
    return f"{'harmful' if key[0] else 'harmless'} prompts: {measure_words(key[1])}"


def percent(one: Estimate, *, signed: bool = False) -> str:
    """``mean [low, high]`` in percent."""
    sign = "+" if signed else ""
    cells = ["n/a" if end != end else f"{100 * end:{sign}.1f}" for end in (one.mean, *one.interval)]
    return f"{cells[0]} [{cells[1]}, {cells[2]}]"
