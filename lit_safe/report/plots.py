"""Figures of a run and of several runs, for a screen and for a printed page."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lit_safe.report.tables import QUANTITIES, estimate_from_json
from lit_safe.statistics.clustered import Estimate

BLUE, ORANGE, GREY = "#1f5f99", "#c8691c", "#8a8a8a"  # told apart without colour vision, and by their grey on paper
SHARES = (
    "logps/accuracies",
    "logps/accuracies_per_token",
    "logps/accuracies/safer",
    "logps/accuracies_per_token/safer",
    "rewards/accuracies",
    "rollouts/unsafe",
)
SMOOTHED = 5  # steps of the running mean drawn over single steps
SIZE = 9  # points


def plot_run(report: Mapping[str, Any], metrics_csv: Path, out: Path) -> None:
    """Before/after shares with 95 % intervals, and the curves of training; the multiplier's path if it moved."""
    curves = read_curves(metrics_csv)
    multipliers = [name for name in curves if name.startswith("dual/multiplier")]
    moved = [name for name in multipliers if len(set(curves[name][1])) > 1]
    panels = 4 if moved else 3
    figure = Figure(figsize=(3.6 * panels, 3.4), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels, width_ratios=[1.5, *[1] * (panels - 1)])
    _before_after(axes[0], report)
    _curves(axes[1], curves, {"train/loss": ("loss", GREY), "train/rewards/margins": ("reward margin", BLUE)})
    axes[1].set_title("loss and implicit reward margin (nats)", fontsize=SIZE)
    drift = {"train/logratios/chosen": ("chosen", BLUE), "train/logratios/rejected": ("rejected", ORANGE)}
    _curves(axes[2], curves, drift)
    axes[2].set_title("log-prob, policy - reference (nats)", fontsize=SIZE)
    if moved:
        colours = (BLUE, ORANGE, GREY)
        for k, name in enumerate(moved):
            label = name.removeprefix("dual/").replace("_", " ")
            axes[3].plot(*curves[name], "o-", color=colours[k % 3], markersize=3, label=label)
            cost = name.replace("multiplier", "cost")
            if cost in curves:
                colour = colours[(k + 1) % 3]
                axes[3].plot(*curves[cost], "s--", color=colour, markersize=3, label=cost.split("/")[1])
                _limit(axes[3], report, cost, colour)
        axes[3].axhline(0, color=GREY, linewidth=0.5)
        axes[3].set_title("multiplier and estimated cost", fontsize=SIZE)
    for ax in axes[1:]:
        ax.set_xlabel("optimizer step", fontsize=SIZE)
        if ax.get_legend_handles_labels()[0]:  # none without metrics.csv
            ax.legend(frameon=False, fontsize=SIZE)
    for ax in axes:
        clean(ax)
    figure.suptitle(f"{report['objective']['name']}, {report['model']['source']}", fontsize=10, x=0.01, ha="left")
    figure.savefig(out)


def plot_comparison(
    names: Sequence[str], before: Mapping[str, Estimate], after: Sequence[Mapping[str, Estimate]], out: Path
) -> None:
    """A panel for each main measure: every run's value with its 95 % interval, and where the first one began."""
    measures = [
        name for name in (*SHARES[:3], "rollouts/unsafe", "rollouts/kl_per_token") if any(name in a for a in after)
    ]
    figure = Figure(figsize=(2.9 * len(measures) + 1, 0.45 * len(names) + 1.4), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    axes = np.atleast_1d(figure.subplots(1, len(measures), sharey=True))
    for ax, measure in zip(axes, measures, strict=True):
        scale = 100 if QUANTITIES[measure].share else 1
        if measure in before and not math.isnan(before[measure].mean):
            ax.axvline(scale * before[measure].mean, color=GREY, linestyle="--", linewidth=1)
        for row, estimates in enumerate(after):
            if measure in estimates:
                _point(ax, measure, estimates[measure], row, BLUE, filled=True)
        ax.set_title(f"{QUANTITIES[measure].short} ({QUANTITIES[measure].unit})", fontsize=SIZE)
        clean(ax)
    axes[0].set_yticks(range(len(names)), names, fontsize=SIZE)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    figure.savefig(out)


def read_curves(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of every column of a ``metrics.csv``; empty without the file.

    Raises:
        ValueError: A row has more cells than the header has names, as after two runs in one folder.
    """
    curves: dict[str, tuple[list[int], list[float]]] = {}
    if not path.exists():
        return curves
    with path.open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file), 2):
            if None in row:
                raise ValueError(f"{path}, line {number}: has more cells than the header has names: remove the line")
            for name, cell in row.items():
                if cell and row["step"] and name not in ("step", "time"):
                    steps, values = curves.setdefault(name, ([], []))
                    steps.append(int(row["step"]))
                    values.append(float(cell))
    return curves


def _before_after(ax: Axes, report: Mapping[str, Any]) -> None:
    names = [name for name in SHARES if name in report["metrics"]]
    for row, name in enumerate(names):
        entry = report["metrics"][name]
        _point(ax, name, estimate_from_json(entry["before"]), row - 0.14, GREY, filled=False)
        _point(ax, name, estimate_from_json(entry["after"]), row + 0.14, BLUE, filled=True)
    ax.axvline(50, color=GREY, linestyle=":", linewidth=1)
    ax.set_yticks(range(len(names)), [QUANTITIES[name].short for name in names], fontsize=SIZE)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlim(-2, 102)
    ax.set_xlabel("% of held-out pairs or responses", fontsize=SIZE)
    ax.set_title("before (hollow) and after, 95 % intervals", fontsize=SIZE)


def _point(ax: Axes, name: str, estimate: Estimate, row: float, colour: str, *, filled: bool) -> None:
    low, high = estimate.interval
    scale = 1
    if QUANTITIES[name].share:
        scale, low, high = (
            100,
            max(low, 0.0),
            min(high, 1.0),
        )  # t intervals of few prompts overshoot what a share can be
    if math.isfinite(low) and math.isfinite(high):
        ax.plot([scale * low, scale * high], [row, row], color=colour, linewidth=1.2)
    face = colour if filled else "white"
    ax.plot(scale * estimate.mean, row, "o", color=colour, markerfacecolor=face, markersize=5)


def _curves(
    ax: Axes, curves: Mapping[str, tuple[list[int], list[float]]], drawn: Mapping[str, tuple[str, str]]
) -> None:
    for name, (label, colour) in drawn.items():
        if name not in curves:
            continue
        steps, values = curves[name]
        ax.plot(steps, values, color=colour, linewidth=0.6, alpha=0.45)
        window = min(SMOOTHED, len(values))
        smooth = np.convolve(values, np.ones(window) / window, "valid")
        ax.plot(steps[window - 1 :], smooth, color=colour, linewidth=1.6, label=label)
    ax.axhline(0, color=GREY, linewidth=0.5)


def _limit(ax: Axes, report: Mapping[str, Any], cost: str, colour: str) -> None:
    """The limit of one constraint as a line. The name of its cost ends in its own, if there are several."""
    rows = report.get("limit", {}).get("constraints", [])
    own = [row for row in rows if len(rows) == 1 or cost.endswith(f"_{row['constraint']}")]
    if own:
        ax.axhline(own[0]["limit"], color=colour, linestyle=":", linewidth=1, label="limit")


def clean(ax: Axes) -> None:
    """Small tick labels, and no frame above and at the right."""
    ax.tick_params(labelsize=8)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
