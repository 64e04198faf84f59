"""The figure of simulated controllers: cost and multiplier over epochs, with the range of runs under noise.

Letters: D draws, E epochs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from data.oracle.study.plots import COLOURS, GREY, SIZE
from data.oracle.truth.optimum import Floats

BAND = (0.05, 0.95)  # quantiles over draws


class Simulated(Protocol):
    """A run: [E, C] each."""

    @property
    def multiplier(self) -> Floats:
        """Of each epoch."""

    @property
    def cost(self) -> Floats:
        """At the end of each epoch."""


def plot_controllers(
    paths: Mapping[str, Mapping[float, Sequence[Simulated]]], limit: float, star: float, path: Path
) -> None:
    """One column a controller: cost above, multiplier below.

    Args:
        paths: Runs by controller and share that the policy follows. The first run is without noise.
        limit: Drawn as a line above.
        star: The multiplier that meets the limit, drawn as a line below.
        path: The PNG to write.
    """
    figure = Figure(figsize=(1.9 * len(paths), 4.6), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(paths), sharex=True, sharey="row")
    for column, (name, shares) in enumerate(paths.items()):
        for colour, (share, runs) in zip(COLOURS, shares.items(), strict=False):
            text = f"policy follows {100 * share:.0f} % an epoch"
            _lines(axes[0, column], [run.cost[:, 0] for run in runs], colour, text)
            _lines(axes[1, column], [run.multiplier[:, 0] for run in runs], colour, text)
        axes[0, column].set_title(name, fontsize=SIZE)
        for ax, level in zip(axes[:, column], (limit, star), strict=True):
            ax.axhline(level, color=GREY, linewidth=0.9, linestyle=(0, (2, 3)), zorder=1)
            ax.tick_params(labelsize=SIZE - 2)
            for side in ("top", "right"):
                ax.spines[side].set_visible(False)
    axes[0, 0].set_ylabel("E[cost]", fontsize=SIZE)
    axes[1, 0].set_ylabel("λ", fontsize=SIZE)
    axes[1, 0].set_ylim(0, 3 * star)
    axes[1, len(paths) // 2].set_xlabel("epoch", fontsize=SIZE)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False,
                  fontsize=SIZE)  # fmt: skip
    figure.savefig(path)


def _lines(ax: Axes, runs: Sequence[Floats], colour: str, text: str) -> None:
    exact_E, noisy_DE = runs[0], np.array(runs[1:])
    epochs = np.arange(1, len(exact_E) + 1)
    ax.plot(epochs, exact_E, color=colour, linewidth=1.3, label=text)
    if len(noisy_DE):
        ax.fill_between(epochs, *np.quantile(noisy_DE, BAND, axis=0), color=colour, alpha=0.2, linewidth=0)
