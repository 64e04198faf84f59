"""Draws E[c] of the objective's optimum over the multiplier."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lit_safe.constraint.reachability.reach import Reach

BLUE, ORANGE, GREY = "#1f5f99", "#c8691c", "#8a8a8a"
SIZE = 9  # points


def plot(found: Reach, out: Path) -> None:
    """A panel for each constraint: E[c] with its 95 % band, the limit and the multiplier; one for the sample size."""
    panels = len(found.names) + 1
    figure = Figure(figsize=(3.6 * panels, 3.2), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels)
    at_MC = np.array([point.multiplier for point in found.grid])
    for c, (ax, name) in enumerate(zip(axes, found.names, strict=False)):
        at = at_MC[:, c]
        cost, error = (np.array([getattr(p, which)[c] for p in found.grid]) for which in ("cost", "stderr"))
        ax.fill_between(at, cost - 1.96 * error, cost + 1.96 * error, color=BLUE, alpha=0.2, linewidth=0)
        ax.plot(at, cost, "o-", color=BLUE, markersize=3, label="E[c], 95 % band")
        ax.axhline(found.limit[c], color=GREY, linestyle="--", linewidth=1, label="limit")
        best = found.optimum
        ax.errorbar(best.multiplier[c], best.cost[c], fmt="D", color=ORANGE, label="λ*",
                    xerr=np.nan_to_num(1.96 * found.multiplier_stderr[c]))  # fmt: skip
        ax.set_title(f"E[c] of {name} by λ", fontsize=SIZE)
        ax.legend(frameon=False, fontsize=SIZE)
    for which, colour in (("median", BLUE), ("least", GREY)):
        size_M = [getattr(p, f"effective_{which}") for p in found.grid]
        axes[-1].plot(at_MC[:, 0], size_M, "o-", color=colour, markersize=3, label=which)
    axes[-1].axhline(found.per_prompt, color=GREY, linestyle=":", linewidth=1, label="samples")
    axes[-1].set_ylim(bottom=0)
    axes[-1].set_title("effective samples per prompt", fontsize=SIZE)
    axes[-1].legend(frameon=False, fontsize=SIZE)
    for ax in axes:
        ax.set_xlabel("λ (nats per cost unit)", fontsize=SIZE)
        ax.tick_params(labelsize=SIZE)
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(out)
