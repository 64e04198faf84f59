"""The trade-off of an anchor: malformed mass against regret, over the weights of each anchor of a study.

    python -m data.oracle.run --folder runs/anchors --objectives safe_dpo_soft --anchors none reference_support
    python -m data.oracle.study.tradeoff runs/anchors

(an anchor may have a weight, as in ``reference_support=0.3``) writes ``tradeoff.md`` and ``tradeoff.png`` there.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from data.oracle.study.plots import COLOURS, GREY, LOWEST, MARKERS, SIZE, label
from data.oracle.study.results import Run, read_runs


class Point(NamedTuple):
    """One run. Shares are in percent; the regret is given well-formed text."""

    objective: str
    anchor: str
    weight: float | None
    seed: int
    malformed: float
    malformed_worst: float
    unsafe: float
    regret: float | None
    reward: float
    cost: float | None


def point(run: Run) -> Point:
    """The point of a run from ``read_runs``; its objective, anchor and weight come from the name of its folder."""
    objective, _, anchored = run["name"].partition("+")
    final = run["final"]
    share = final["wellformed/regret_share"]
    text = run["anchor"]["text"]
    weight = float(text.partition("weight=")[2].partition(",")[0].rstrip(")")) if "weight=" in text else None
    return Point(
        objective,
        anchored.partition("=")[0] or "none",
        weight,
        run["seed"],
        100 * final["malformed"],
        100 * final["malformed_worst"],
        100 * final["unsafe"],
        None if share is None else 100 * share,
        final["wellformed/reward"],
        final.get("wellformed/cost"),
    )


def markdown(points: Sequence[Point]) -> str:
    """A table with one line per run, ordered by objective, anchor and weight."""
    head = ["objective", "anchor", "weight", "seed", "malformed %", "worst prompt %", "unsafe %", "regret %", "reward"]
    rows = [
        [
            label(p.objective), p.anchor, "" if p.weight is None else f"{p.weight:g}", str(p.seed),
            f"{p.malformed:.2f}", f"{p.malformed_worst:.2f}", f"{p.unsafe:.2f}",
            "-" if p.regret is None else f"{p.regret:.1f}", f"{p.reward:.3f}",
        ]
        for p in points
    ]  # fmt: skip
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join([*lines, "", "Regret and reward are given well-formed text.", ""])


def plot(points: Sequence[Point], reference: float, path: Path) -> None:
    """A line for each objective and anchor through its weights; an error bar extends to the worst prompt."""
    figure = Figure(figsize=(6.4, 4.6), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    groups = list(dict.fromkeys((p.objective, p.anchor) for p in points))
    for k, group in enumerate(groups):
        own = [p for p in points if (p.objective, p.anchor) == group and p.regret is not None]
        colour, marker = COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)]
        x = [max(LOWEST, p.malformed) for p in own]
        y = [p.regret for p in own if p.regret is not None]
        ax.plot(
            x,
            y,
            color=colour,
            marker=marker,
            markersize=6,
            linewidth=1.2,
            label=label("+".join(group)),
        )
        ax.hlines(y, x, [max(LOWEST, p.malformed_worst) for p in own], color=colour, linewidth=0.9, alpha=0.45)
        for p, at in zip(own, zip(x, y, strict=True), strict=True):
            if p.weight is not None:
                ax.annotate(f"{p.weight:g}", at, (3, 4), textcoords="offset points", fontsize=SIZE - 2)
    ax.axvline(reference, color=GREY, linewidth=0.9, linestyle=(0, (2, 3)), zorder=1)
    ax.annotate(
        "reference", (reference, 1), (-3, -4), xycoords=("data", "axes fraction"), textcoords="offset points",
        rotation=90, ha="right", va="top", fontsize=SIZE - 1, color=GREY,
    )  # fmt: skip
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_ylim(bottom=0)
    ax.set_xlabel("malformed mass (%), to the worst prompt", fontsize=SIZE)
    ax.set_ylabel("regret given well-formed text (%)", fontsize=SIZE)
    ax.tick_params(labelsize=SIZE - 1)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=SIZE - 1)
    figure.savefig(path)


def write_tradeoff(folder: Path) -> None:
    """Write ``tradeoff.md`` and ``tradeoff.png`` of the runs of a folder.

    Raises:
        FileNotFoundError: If there are no runs.
    """
    runs = read_runs(folder)
    points = sorted(map(point, runs), key=lambda p: (p.objective, p.anchor, p.weight or 0.0, p.seed))
    (folder / "tradeoff.md").write_text(markdown(points), encoding="utf-8")
    plot(points, 100 * runs[0]["reference"]["malformed"], folder / "tradeoff.png")


if __name__ == "__main__":
    write_tradeoff(Path(sys.argv[1]))
