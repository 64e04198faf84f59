"""The figure of ``methods``: every method on the exact frontier, and its malformed mass beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from data.oracle.study.plots import COLOURS, DARK, GREY, LOWEST, MARKERS, SIZE

HEIGHT = 0.235  # inches of a method's line


def plot_methods(compared: Mapping[str, Any], path: Path) -> None:
    """Draw what ``data.oracle.study.methods.compare`` returns. A method has the number of its row in the table."""
    methods: Sequence[Mapping[str, Any]] = compared["methods"]
    figure = Figure(figsize=(10.5, max(4.2, 0.9 + HEIGHT * len(methods))), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    plane, mass = figure.subplots(1, 2, width_ratios=(1.35, 1))
    _frontier(plane, compared)
    for row, method in enumerate(methods):
        colour = COLOURS[row % (len(COLOURS) - 1)]
        _method(plane, method, str(row + 1), colour, MARKERS[row // (len(COLOURS) - 1) % len(MARKERS)])
        _malformed(mass, method, row, colour, MARKERS[row // (len(COLOURS) - 1) % len(MARKERS)])
    mass.axvline(100 * compared["reference"]["malformed"], color=GREY, linewidth=0.9, linestyle=(0, (2, 3)), zorder=1)
    mass.set_yticks(range(len(methods)), [f"{row + 1}  {method['name']}" for row, method in enumerate(methods)])
    mass.set_ylim(len(methods) - 0.4, -0.6)
    mass.set_xscale("log")
    mass.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    mass.xaxis.set_minor_formatter(NullFormatter())
    mass.set_xlabel("malformed mass (%), to the worst prompt; dotted: reference", fontsize=SIZE)
    for ax in (plane, mass):
        ax.tick_params(labelsize=SIZE - 1)
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
    figure.savefig(path)


def _frontier(ax: Axes, compared: Mapping[str, Any]) -> None:
    """The frontier, its end without a limit, and the reference."""
    cost, reward = compared["frontier"]["cost"], compared["frontier"]["reward"]
    ax.plot(cost, reward, color=DARK, linewidth=1.3, zorder=2, label="exact frontier (beta 1)")
    ax.annotate("λ = 0", (cost[0], reward[0]), (6, -2), textcoords="offset points", fontsize=SIZE - 1, color=DARK)
    start = compared["reference"]
    ax.plot(start["cost"], start["reward"], "o", color=GREY, markersize=8, zorder=3, label="reference")
    ax.legend(frameon=False, fontsize=SIZE - 1, loc="upper left", handlelength=1.2)
    ax.set_xlabel("E[cost]", fontsize=SIZE)
    ax.set_ylabel("E[reward] (nats)", fontsize=SIZE)


def _method(ax: Axes, method: Mapping[str, Any], number: str, colour: str, marker: str) -> None:
    """The mean over seeds with its number, and lines to the seeds."""
    cost, reward = (method["measured"][name]["mean"] for name in ("cost", "reward"))
    for seed in method["seeds"]:
        ax.plot([cost, seed["cost"]], [reward, seed["reward"]], color=colour, linewidth=0.9, alpha=0.6, zorder=4)
    ax.plot(cost, reward, marker, color=colour, markersize=6, markeredgecolor="white", markeredgewidth=0.7, zorder=5)
    ax.annotate(number, (cost, reward), (4, 3), textcoords="offset points", fontsize=SIZE - 1, color=colour, zorder=6)


def _malformed(ax: Axes, method: Mapping[str, Any], row: int, colour: str, marker: str) -> None:
    mean, worst = (method["measured"]["malformed"]["mean"], method["measured"]["malformed_worst"]["most"])
    low, high = (max(LOWEST, 100 * value) for value in (mean, worst))
    ax.plot([low, high], [row, row], color=colour, linewidth=1, alpha=0.6)
    ax.plot(low, row, marker, color=colour, markersize=6, markeredgecolor="white", markeredgewidth=0.7)
