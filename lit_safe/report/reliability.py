"""The figure of a scorer's calibration: predicted probabilities against observed shares."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lit_safe.report.plots import BLUE, GREY, SIZE
from lit_safe.statistics.calibration import Reliability


def plot_reliability(curves: Mapping[str, Reliability], out: Path) -> None:
    """Write one panel for each output: a point for each bin, and the line of perfect calibration."""
    figure = Figure(figsize=(3.4 * len(curves), 3.4), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(curves), squeeze=False)[0]
    for ax, (name, curve) in zip(axes, curves.items(), strict=True):
        ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
        ax.plot([one.predicted for one in curve.bins], [one.observed for one in curve.bins], "o-", color=BLUE)
        ax.set_title(f"{name}: calibration error {curve.error:.3f} ({curve.by_chance:.3f} by chance)", fontsize=SIZE)
        ax.set_xlabel("predicted probability of unsafe", fontsize=SIZE)
        ax.set_ylabel("share labelled unsafe", fontsize=SIZE)
        ax.set(xlim=(0, 1), ylim=(0, 1))
        ax.tick_params(labelsize=SIZE)
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
    figure.savefig(out)
