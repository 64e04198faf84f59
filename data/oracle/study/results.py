"""The results of a study's runs, and their means over seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.oracle.truth.result import RESULT

Run = Mapping[str, Any]


class Summary(NamedTuple):
    """A figure over seeds; ``stderr`` is the standard error of their mean, None with one seed."""

    mean: float | None
    stderr: float | None
    most: float | None


class Row(NamedTuple):
    """An objective: its figures by name, those of its optimum, and the seeds of the mean."""

    name: str
    aim: str
    seeds: tuple[Any, ...]
    figures: dict[str, Summary]
    at_optimum: dict[str, Summary]
    runs: tuple[Run, ...]


def read_runs(folder: Path) -> list[dict[str, Any]]:
    """Every ``<folder>/<name>/seed_<k>/oracle.json``, with the ``name`` of its folder.

    Raises:
        FileNotFoundError: If there is none.
    """
    paths = sorted(folder.glob(f"*/seed_*/{RESULT}"))
    if not paths:
        raise FileNotFoundError(f"no {folder}/<objective>/seed_<k>/{RESULT}")
    return [{**json.loads(path.read_text(encoding="utf-8")), "name": path.parents[1].name} for path in paths]


def summarise(runs: Sequence[Run]) -> list[Row]:
    """One row for each name, in order of appearance."""
    rows = []
    for name in dict.fromkeys(run["name"] for run in runs):
        own = tuple(run for run in runs if run["name"] == name)
        aims = {run["optimum"] for run in own}
        if len(aims) > 1:
            raise ValueError(f"the seeds of {name} are compared with different optima: {', '.join(sorted(aims))}")
        rows.append(
            Row(
                name,
                own[0]["optimum"],
                tuple(run["seed"] for run in own),
                over_seeds([{**run["final"], **_beside(run, "multiplier")} for run in own]),
                over_seeds([{**run["at_optimum"], **_aim(run)} for run in own]),
                own,
            )
        )
    return rows


def _beside(run: Run, key: str) -> dict[str, float]:
    """Multipliers by name, and seconds."""
    values = run[key] or []
    names = ["multiplier"] if len(run["constraints"]) == 1 else [f"multiplier_{name}" for name in run["constraints"]]
    return {**dict(zip(names, values, strict=bool(values))), "seconds": run["seconds"]["training"]}


def _aim(run: Run) -> dict[str, float]:
    if run.get("diverges") or run["optimum"] == "none":
        return {}
    return {} if run["optimum"] == "masked" else _beside(run, "multiplier_at_optimum")  # which has no multiplier


def over_seeds(figures: Sequence[Mapping[str, float | None]]) -> dict[str, Summary]:
    """Each figure over the seeds, of those that are known."""
    summaries = {}
    for name in figures[0]:
        values = [value for one in figures if (value := one[name]) is not None]
        stderr = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
        mean = float(np.mean(values)) if values else None
        summaries[name] = Summary(mean, stderr, max(values) if values else None)
    return summaries
