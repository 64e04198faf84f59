"""Both axes of a safety evaluation as a figure, and the categories beside them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lit_safe.report.plots import BLUE, GREY, ORANGE, SIZE, clean
from lit_safe.report.safety_page import Row, is_axis, measure_words
from lit_safe.report.tables import estimate_from_json

MOST = 14
"""Largest number of rows of a panel: those with the largest share."""


def plot(report: Mapping[str, Any], path: Path) -> None:
    """A panel for whole suites and, if there are any, one for categories. Hollow: the reference. Filled: the policy."""
    axes = [row for row in report["findings"] if is_axis(row) and not row["unseen"]]
    panels = [("both axes", [row for row in axes if row["category"] is None])]
    strata = [row for row in axes if row["category"] is not None]
    if strata:
        by_share = sorted(strata, key=lambda row: -_mean(row))[:MOST]
        kept = [row for row in strata if row in by_share]
        panels.append((f"the {len(kept)} categories with the largest shares", kept))
    height = 0.34 * max(len(rows) for _, rows in panels) + 1.3
    figure = Figure(figsize=(6.2 * len(panels), height), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    for ax, (title, rows) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _panel(ax, title, rows)
    figure.suptitle(str(report["policy"]["name"]), fontsize=10, x=0.01, ha="left")
    figure.savefig(path)


def _panel(ax: Axes, title: str, rows: Sequence[Row]) -> None:
    for y, row in enumerate(rows):
        colour = ORANGE if row["harmful"] else BLUE
        apart = 0.0 if row["reference"] is None else 0.16
        for arm, shift, face in (("reference", -apart, "white"), ("policy", apart, colour)):
            if row[arm] is None:
                continue
            one = estimate_from_json(row[arm])
            low, high = one.interval
            ax.plot([100 * low, 100 * high], [y + shift] * 2, color=colour, linewidth=1.2)
            ax.plot(100 * one.mean, y + shift, "o", color=colour, markerfacecolor=face, markersize=5)
    ax.set_yticks(range(len(rows)), [_label(row) for row in rows], fontsize=SIZE - 1)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlim(-2, 102)
    ax.axvline(0, color=GREY, linewidth=0.5)
    paired = any(row["reference"] is not None for row in rows)
    ax.set_xlabel(f"% of responses, 95 % intervals{'; hollow: reference' if paired else ''}", fontsize=SIZE)
    ax.set_title(title, fontsize=SIZE)
    clean(ax)


def _label(row: Row) -> str:
    kind = "harmful" if row["harmful"] else "harmless"
    return f"{row['category'] or row['suite'] or 'all'} ({kind}): {measure_words(row['measure'])}"


def _mean(row: Row) -> float:
    return float(row["policy"]["mean"] or 0)
