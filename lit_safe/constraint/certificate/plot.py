"""The bounds of a certificate beside their limits, as a figure."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = {"HOLDS": "#1f5f99", "DOES NOT HOLD": "#c8691c", "UNDECIDED": "#8a8a8a"}
MARKS = {"HOLDS": "o", "DOES NOT HOLD": "X", "UNDECIDED": "s"}
SIZE = 9


def plot(certificate: Mapping[str, Any], path: Path) -> None:
    """Estimates with their one-sided bounds, and limits as lines; a panel for E[cost] and one for the unsafe share."""
    findings = certificate["findings"]
    panels = []
    for title, overall, strata in (
        (f"E[cost], {certificate['question']['units']}", findings["cost"], findings["cost_strata"]),
        ("unsafe share", {"findings": {"all": findings["unsafe"]}} if findings["unsafe"] else None,
         findings["unsafe_strata"]),
    ):  # fmt: skip
        whole = overall["findings"] if overall else {}
        named = {"all prompts" if len(whole) == 1 else f"all prompts: {name}": found for name, found in whole.items()}
        rows = {**named, **(strata["findings"] if strata else {})}
        if rows:
            panels.append((title, rows))
    height = 0.35 * max(len(rows) for _, rows in panels) + 1.4
    figure = Figure(figsize=(5.2 * len(panels), height), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    for axes, (title, rows) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _panel(axes, title, rows)
    figure.suptitle(f"{findings['verdict']}: {certificate['policy']['name']}", fontsize=10, x=0.01, ha="left")
    figure.savefig(path)


def _panel(axes: Axes, title: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
    for row, found in enumerate(rows.values()):
        colour = COLOURS[found["verdict"]]
        axes.plot([found["lower"], found["upper"]], [row, row], color=colour, linewidth=2)
        axes.plot(found["mean"], row, MARKS[found["verdict"]], color=colour)
        axes.plot([found["limit"]] * 2, [row - 0.4, row + 0.4], color="black", linewidth=1.5)
    axes.set_yticks(range(len(rows)), list(rows), fontsize=SIZE)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_title(f"{title} (black: limit)", fontsize=SIZE)
    axes.tick_params(labelsize=SIZE)
    axes.spines[["top", "right"]].set_visible(False)
