"""Safety on unsafe prompts against refusals of safe ones, for any runs that have both measurements.

The two axes are those of SODE (Varshney et al. 2024, arXiv:2401.00287): unsafe responses to unsafe prompts, and
abstention on safe prompts. A policy that refuses everything is best on the first and worst on the second.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lit_safe.constraint.certificate.contents import CERTIFICATE
from lit_safe.report.plots import BLUE, GREY, SIZE, clean

REFUSALS = "refusals.json"
"""The file of ``python train.py refusals --out <run>/refusals.json``."""


class Share(NamedTuple):
    """A share in [0, 1] with the ends of its interval, and the number of responses behind it."""

    mean: float
    low: float
    high: float
    responses: int

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


class TwoAxes(NamedTuple):
    """Both measurements of one policy. ``limit`` is that of the unsafe share, None if none was certified."""

    name: str
    unsafe: Share
    refused: Share
    verdict: str
    limit: float | None


def read_axes(folder: Path, name: str) -> TwoAxes | None:
    """Both measurements of a run folder. None if it lacks a ``certificate.json`` or a ``refusals.json``.

    Raises:
        ValueError: A file is not one of these. The message names it.
    """
    certified, refused = folder / CERTIFICATE, folder / REFUSALS
    if not (certified.is_file() and refused.is_file()):
        return None
    findings, count = _certificate(certified)
    after = _read(refused).get("after") or {}
    try:
        own = findings["unsafe_share"]
        answered = Share(float(own["mean"]), float(own["lower"]), float(own["upper"]), count)
        refusing = Share(float(after["mean"]), float(after["low"]), float(after["high"]), int(after["count"]))
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{folder}: {CERTIFICATE} or {REFUSALS} lacks a share: write it again") from None
    limit = findings["unsafe"]["limit"] if findings.get("unsafe") else None
    return TwoAxes(name, answered, refusing, str(findings["verdict"]), limit)


def axes_markdown(rows: Sequence[TwoAxes], picture: str) -> list[str]:
    """The lines of a table and a picture."""
    head = [
        "## Two axes",
        "",
        "Unsafe responses to the prompts of the certify split, with one-sided 95 % bounds, and refusals of safe",
        "prompts, with 95 % intervals.",
        "",
        "| run | unsafe % | verdict | refused safe prompts % | prompts |",
        "|---|---|---|---|---|",
    ]
    lines = [
        f"| {row.name} | {row.unsafe} | {row.verdict} | {row.refused} "
        f"| {row.unsafe.responses} / {row.refused.responses} |"
        for row in rows
    ]
    return [*head, *lines, "", f"![unsafe responses against refusals of safe prompts]({picture})", ""]


def write_axes(rows: Sequence[TwoAxes], path: Path) -> None:
    """The same as CSV, one row a run."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        ends = [f"{axis}{end}" for axis in ("unsafe", "refused") for end in ("", "_low", "_high", "_responses")]
        table.writerow(["run", *ends, "verdict", "limit"])
        for row in rows:
            table.writerow([row.name, *row.unsafe, *row.refused, row.verdict, "" if row.limit is None else row.limit])


def plot_axes(rows: Sequence[TwoAxes], path: Path) -> None:
    """Every run as a point with its intervals. Runs whose names differ in the last part alone have one colour."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    ax: Axes = figure.subplots()
    kinds = list(dict.fromkeys(_kind(row.name) for row in rows))
    for row in rows:
        colour = f"C{kinds.index(_kind(row.name)) % 10}" if len(kinds) > 1 else BLUE
        first = next(one for one in rows if _kind(one.name) == _kind(row.name)) is row
        x, y = 100 * row.refused.mean, 100 * row.unsafe.mean
        ax.errorbar(
            x,
            y,
            xerr=[[x - 100 * row.refused.low], [100 * row.refused.high - x]],
            yerr=[[y - 100 * row.unsafe.low], [100 * row.unsafe.high - y]],
            fmt="o",
            color=colour,
            markersize=5,
            linewidth=0.8,
            label=_kind(row.name) if first else None,
        )
    for limit in sorted({row.limit for row in rows if row.limit is not None}):
        ax.axhline(100 * limit, color=GREY, linestyle="--", linewidth=1)
        ax.annotate(f"limit {100 * limit:g} %", (1, 100 * limit), xycoords=("axes fraction", "data"), fontsize=SIZE - 1)
    ax.set_xlabel("refused safe prompts (%)", fontsize=SIZE)
    ax.set_ylabel("unsafe responses to unsafe prompts (%)", fontsize=SIZE)
    ax.set_xlim(left=-2)
    ax.set_ylim(-2, 102)
    ax.legend(fontsize=SIZE - 1, frameon=False)
    clean(ax)
    figure.savefig(path)


def _kind(name: str) -> str:
    """A run's name without its last part, if it has several: ``c_dpo/seed_0`` is one of ``c_dpo``."""
    return name.rpartition("/")[0] or name


def _certificate(path: Path) -> tuple[Mapping[str, Any], int]:
    content = _read(path)
    try:
        return content["findings"], int(content["responses"]["count"])
    except (KeyError, TypeError):
        raise ValueError(f"{path} is not a certificate: write it again with `python train.py certify`") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}): write it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object: write it again")
    return content
