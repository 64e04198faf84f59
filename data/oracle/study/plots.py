"""Figures of runs in the oracle world, for print and screen. All drawn values are in the runs' JSON.

Letters: M multipliers of the frontier, C cost constraints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from data.oracle.study.results import Run
from data.oracle.truth.exact import LIMITED

# Okabe & Ito's colours, distinguishable without colour vision; each has a marker, for print without colour
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY, DARK = "#8a8a8a", "#333333"
SIZE = 9  # points
LOWEST = 1e-4  # % on logarithmic axes: smaller values are drawn there


SPELLED = {"safe_dpo": "SafeDPO", "c_dpo": "C-DPO", "dpo": "DPO", "_": " ", "+": " + "}


def label(name: str) -> str:
    """The display name of a run's folder."""
    for coded, spelled in SPELLED.items():
        name = name.replace(coded, spelled)
    return name


class Style(NamedTuple):
    """Colour and marker of an objective, the same in every panel."""

    colour: str
    marker: str


def plot_report(folder: Path, runs: Sequence[Run]) -> None:
    """Write ``report.png`` with all panels, and each as ``report_<panel>.png``."""
    names = list(dict.fromkeys(run["name"] for run in runs))
    styles = {
        name: Style(COLOURS[k % len(COLOURS)], MARKERS[(k + k // len(COLOURS)) % len(MARKERS)])
        for k, name in enumerate(names)
    }
    panels = {"plane": _plane, "multiplier": _multiplier, "malformed": _malformed, "regret": _regret}
    figure = _figure(9.0, 7.4)
    for letter, ax, draw in zip("abcd", figure.subplots(2, 2).flat, panels.values(), strict=True):
        _panel(ax, draw, runs, styles)
        ax.set_title(letter, fontsize=SIZE + 2, fontweight="bold", loc="left")
    _legend(figure, styles)
    figure.savefig(folder / "report.png")
    for name, draw in panels.items():
        single = _figure(5.4, 4.4)
        _panel(single.subplots(), draw, runs, styles)
        _legend(single, styles)
        single.savefig(folder / f"report_{name}.png")


Draw = Callable[[Axes, Sequence[Run], Mapping[str, Style]], None]


def _panel(ax: Axes, draw: Draw, runs: Sequence[Run], styles: Mapping[str, Style]) -> None:
    draw(ax, runs, styles)
    ax.tick_params(labelsize=SIZE - 1)
    ax.xaxis.label.set_fontsize(SIZE)
    ax.yaxis.label.set_fontsize(SIZE)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def _plane(ax: Axes, runs: Sequence[Run], styles: Mapping[str, Style]) -> None:
    """Reward against cost: the frontier, the reference, SafeDPO's optimum, and the path and end of every run."""
    for run in _distinct(runs, lambda run: run["frontier"]):
        cost_M = np.mean(run["frontier"]["cost"], axis=-1)
        reward_M = np.array(run["frontier"]["reward"])
        ax.plot(cost_M, reward_M, color=DARK, linewidth=1.3, zorder=2)
        ax.annotate(
            "λ = 0", (cost_M[0], reward_M[0]), (6, -2), textcoords="offset points", fontsize=SIZE - 1, color=DARK
        )
    for limit in sorted({float(np.mean(run["limit"])) for run in runs if run["optimum"] == "tilt_at_limit"}):
        ax.axvline(limit, color=GREY, linewidth=0.9, linestyle=(0, (2, 3)), zorder=1)
        ax.annotate(
            "limit", (limit, 0), (-3, 4), xycoords=("data", "axes fraction"), textcoords="offset points",
            rotation=90, ha="right", va="bottom", fontsize=SIZE - 1, color=GREY,
        )  # fmt: skip
    for run in _distinct(runs, lambda run: run["reference"]):
        ax.plot(*_point(run["reference"]), "o", color=GREY, markersize=8, markeredgecolor="white", zorder=3)
    for run in _distinct(runs, lambda run: run["masked"]):
        ax.plot(*_point(run["masked"]), "*", markersize=14, markerfacecolor="white", markeredgecolor=DARK, zorder=3)
    limited = [run for run in runs if any(run["multiplier_at_optimum"]) and run["optimum"] in LIMITED]
    for run in _distinct(limited, lambda run: run["at_optimum"]):
        ax.plot(*_point(run["at_optimum"]), "o", markersize=10, markerfacecolor="none", markeredgecolor=DARK, zorder=3)
    for run in runs:
        style = styles[run["name"]]
        way = np.array([_point(point["values"]) for point in run["curve"]] + [_point(run["final"])])
        ax.plot(*way.T, color=style.colour, linewidth=1, alpha=0.35, zorder=4)
        ax.plot(
            *way[-1], style.marker, color=style.colour, markersize=6.5, markeredgecolor="white", markeredgewidth=0.8,
            zorder=5,
        )  # fmt: skip
    marks = {
        "exact frontier": Line2D([], [], color=DARK, linewidth=1.3),
        "reference": _mark("o", GREY, "white", 8),
        "SafeDPO's optimum": _mark("*", "white", DARK, 12),
    }
    if limited:
        marks["optimum at the limit"] = _mark("o", "none", DARK, 9)
    ax.legend(marks.values(), marks.keys(), frameon=False, fontsize=SIZE - 1, loc="upper left", handlelength=1.2)
    several = len(runs[0]["constraints"]) > 1
    ax.set_xlabel("E[cost], mean over constraints" if several else "E[cost]")
    ax.set_ylabel("E[reward] (nats)")


def _multiplier(ax: Axes, runs: Sequence[Run], styles: Mapping[str, Style]) -> None:
    """The path of each changing multiplier, and the exact multiplier."""
    moving = [run for run in runs if len({tuple(point["multiplier"] or ()) for point in run["multiplier_path"]}) > 1]
    for run in moving:
        style = styles[run["name"]]
        steps = [point["step"] for point in run["multiplier_path"]]
        for c, exact in enumerate(run["multiplier_at_optimum"]):
            ax.axhline(exact, color=DARK, linewidth=0.9, linestyle=(0, (5, 3)), zorder=1)
            path = [point["multiplier"][c] for point in run["multiplier_path"]]
            ax.plot(steps, path, color=style.colour, marker=style.marker, markersize=3.5, linewidth=1.3)
            if len(run["constraints"]) > 1:
                ax.annotate(
                    run["constraints"][c], (steps[-1], path[-1]), (2, 5), textcoords="offset points",
                    fontsize=SIZE - 2, ha="right", color=style.colour,
                )  # fmt: skip
    if moving:
        ax.legend(
            [Line2D([], [], color=DARK, linewidth=0.9, linestyle=(0, (5, 3)))], ["exact λ*"], frameon=False,
            fontsize=SIZE - 1,
        )  # fmt: skip
        ax.set_ylim(bottom=0)
    else:
        ax.text(0.5, 0.5, "no run moves its multiplier", transform=ax.transAxes, ha="center", fontsize=SIZE, color=GREY)
        ax.set_axis_off()
    ax.set_xlabel("optimizer step")
    ax.set_ylabel("multiplier λ (nats per cost unit)")


def _malformed(ax: Axes, runs: Sequence[Run], styles: Mapping[str, Style]) -> None:
    """Malformed mass, mean over prompts."""
    for run in _distinct(runs, lambda run: run["reference"]):
        ax.axhline(max(LOWEST, 100 * run["reference"]["malformed"]), color=GREY, linewidth=0.9, linestyle=(0, (2, 3)))
        ax.annotate(
            "reference", (1, max(LOWEST, 100 * run["reference"]["malformed"])), (0, 3), textcoords="offset points",
            xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=SIZE - 1, color=GREY,
        )  # fmt: skip
    _shares(ax, runs, styles, "malformed")
    ax.set_ylabel("malformed mass (%)")


def _regret(ax: Axes, runs: Sequence[Run], styles: Mapping[str, Style]) -> None:
    """Regret given well-formed text, as a share of J(optimum) - J(reference). Panel c shows the malformed mass."""
    _shares(ax, runs, styles, "wellformed/regret_share")
    ax.set_ylabel("regret given well-formed text (%)")


def _shares(ax: Axes, runs: Sequence[Run], styles: Mapping[str, Style], name: str) -> None:
    seen: list[float] = []
    for run in runs:
        points = [(point["step"], point["values"][name]) for point in run["curve"]]
        if run["steps"] > points[-1][0]:
            points.append((run["steps"], run["final"][name]))
        known = [point for point in points if point[1] is not None]
        if known:
            steps, values = zip(*known, strict=True)
            shares = [max(LOWEST, 100 * value) for value in values]
            seen += shares
            style = styles[run["name"]]
            ax.plot(steps, shares, color=style.colour, marker=style.marker, markersize=3.5, linewidth=1.3)
    if len(set(seen)) == 1:  # an axis needs two ends
        ax.set_ylim(seen[0] / 2, seen[0] * 2)
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    subs = (1.0,) if high > 1000 * low else (1.0, 2.0, 5.0)  # a short axis has few powers of ten to label
    ax.yaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_xlabel("optimizer step")


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    return figure


def _legend(figure: Figure, styles: Mapping[str, Style]) -> None:
    handles = [
        Line2D([], [], color=s.colour, marker=s.marker, markersize=6, linewidth=1.3, markeredgecolor="white")
        for s in styles.values()
    ]
    names = [label(name) for name in styles]
    inches = 0.6 + 0.075 * max(map(len, names))  # width of the widest entry, including its mark
    columns = max(1, min(len(names), int(figure.get_figwidth() / inches)))
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=SIZE)


def _mark(marker: str, face: str, edge: str, size: float) -> Line2D:
    return Line2D([], [], linestyle="none", marker=marker, markerfacecolor=face, markeredgecolor=edge, markersize=size)


def _point(values: Mapping[str, float]) -> tuple[float, float]:
    """(cost, reward); the cost is a mean over constraints."""
    return float(np.mean([v for name, v in values.items() if name.startswith("cost")])), values["reward"]


def _distinct(runs: Sequence[Run], key: Callable[[Run], Any]) -> list[Run]:
    """The first run of each ``key``, so that values common to runs are drawn once."""
    return list({repr(key(run)): run for run in reversed(runs)}.values())
