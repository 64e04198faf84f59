"""The figure of ``methods``: every method on the exact frontier, and its malformed mass beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from data.oracle.study.plots import COLOURS, DARK, GREY, LOWEST, MARKERS, SIZE
from data.oracle.truth.optimum import Floats

HEIGHT = 0.235  # inches of a method's line
RADII = tuple(range(10, 400, 6))  # points from a marker to its number, nearest first
TURNS = np.linspace(0.5, 0.5 + 2 * np.pi, 12, endpoint=False)  # directions, radians


def plot_methods(compared: Mapping[str, Any], path: Path) -> None:
    """Draw what ``data.oracle.study.methods.compare`` returns. A method has the number of its row in the table."""
    methods: Sequence[Mapping[str, Any]] = compared["methods"]
    figure = Figure(figsize=(10.5, max(4.2, 0.9 + HEIGHT * len(methods))), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    plane, mass = figure.subplots(1, 2, width_ratios=(1.35, 1))
    _frontier(plane, compared)
    colours = [COLOURS[row % (len(COLOURS) - 1)] for row in range(len(methods))]  # not black
    for row, (method, colour) in enumerate(zip(methods, colours, strict=True)):
        marker = MARKERS[row // (len(COLOURS) - 1) % len(MARKERS)]
        _method(plane, method, colour, marker)
        _malformed(mass, method, row, colour, marker)
    mass.axvline(100 * compared["reference"]["malformed"], color=GREY, linewidth=0.9, linestyle=(0, (2, 3)), zorder=1)
    mass.set_yticks(range(len(methods)), [f"{row + 1}  {method['name']}" for row, method in enumerate(methods)])
    mass.set_ylim(len(methods) - 0.4, -0.6)
    mass.set_xscale("log")
    mass.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    mass.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    mass.xaxis.set_minor_formatter(NullFormatter())
    mass.set_xlabel("malformed mass (%); line: to the worst prompt\ndotted: the reference's", fontsize=SIZE)
    for ax in (plane, mass):
        ax.tick_params(labelsize=SIZE - 1)
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
    figure.draw_without_rendering()  # the layout decides where points lie
    _numbers(plane, methods, colours)
    figure.savefig(path)


def _numbers(ax: Axes, methods: Sequence[Mapping[str, Any]], colours: Sequence[str]) -> None:
    """The number of each method, at the nearest place that is free of markers and of the numbers before it."""
    scale = 72 / ax.figure.dpi  # points a pixel
    data_N2 = np.array([_place(method["measured"]) for method in methods])
    point_N2 = ax.transData.transform(data_N2) * scale
    taken: list[Floats] = []
    for number, (at, here, colour) in enumerate(zip(data_N2, point_N2, colours, strict=True), 1):
        places = (here + radius * np.array([np.cos(turn), np.sin(turn)]) for radius in RADII for turn in TURNS)
        place = next(p for p in places if _free(p, point_N2, taken))
        taken.append(place)
        far = float(np.hypot(*(place - here))) > RADII[0] + 1
        ax.annotate(
            str(number), at, place - here, textcoords="offset points", fontsize=SIZE - 1, color=colour, zorder=6,
            ha="center", va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.7} if far else None,
        )  # fmt: skip


def _free(place: Floats, marker_N2: Floats, taken: Sequence[Floats]) -> bool:
    """Whether a number here touches no marker and no other number; distances in points."""
    beside = np.hypot(*(marker_N2 - place).T).min() >= RADII[0] - 0.1
    return bool(beside and all(abs(place[0] - x) >= 12 or abs(place[1] - y) >= 9 for x, y in taken))


def _place(figures: Mapping[str, Any]) -> tuple[float, float]:
    return figures["cost"]["mean"], figures["reward"]["mean"]


def _frontier(ax: Axes, compared: Mapping[str, Any]) -> None:
    """The frontier, its end without a limit, and the reference."""
    cost, reward = compared["frontier"]["cost"], compared["frontier"]["reward"]
    ax.plot(cost, reward, color=DARK, linewidth=1.3, zorder=2, label="exact frontier (beta 1; right end: λ = 0)")
    start = compared["reference"]
    ax.plot(start["cost"], start["reward"], "o", color=GREY, markersize=8, zorder=3, label="reference")
    ax.legend(frameon=False, fontsize=SIZE - 1, loc="upper left", handlelength=1.2)
    ax.set_xlabel("E[cost]", fontsize=SIZE)
    ax.set_ylabel("E[reward] (nats)", fontsize=SIZE)


def _method(ax: Axes, method: Mapping[str, Any], colour: str, marker: str) -> None:
    """The mean over seeds, and lines to the seeds."""
    cost, reward = _place(method["measured"])
    for seed in method["seeds"]:
        ax.plot([cost, seed["cost"]], [reward, seed["reward"]], color=colour, linewidth=0.9, alpha=0.6, zorder=4)
    ax.plot(cost, reward, marker, color=colour, markersize=6, markeredgecolor="white", markeredgewidth=0.7, zorder=5)


def _malformed(ax: Axes, method: Mapping[str, Any], row: int, colour: str, marker: str) -> None:
    mean, worst = (method["measured"]["malformed"]["mean"], method["measured"]["malformed_worst"]["most"])
    low, high = (max(LOWEST, 100 * value) for value in (mean, worst))
    ax.plot([low, high], [row, row], color=colour, linewidth=1, alpha=0.6)
    ax.plot(low, row, marker, color=colour, markersize=6, markeredgecolor="white", markeredgewidth=0.7)
