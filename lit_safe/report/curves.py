"""Curves of several runs from their ``metrics.csv``: one figure, the last values as tables."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from lit_safe.report.plots import SIZE, SMOOTHED, clean

Curves = Mapping[str, tuple[list[int], list[float]]]
"""Optimizer steps and values by column of a ``metrics.csv``."""

SHOWN = {
    "train/loss": "loss (nats)",
    "train/rewards/margins": "implicit reward margin (nats)",
    "train/logratios/chosen": "log-ratio of chosen (nats)",
    "eval/loss": "held-out loss (nats)",
    "eval/rewards/accuracies": "held-out reward accuracy",
    "dual/cost": "estimated cost (cost units)",
    "dual/multiplier": "multiplier λ",
}
"""Curves that a comparison shows, with their titles. Several constraints have a curve each, ``dual/cost_<name>``."""

FEW = 12  # points of a curve that are drawn as such
LINES = ("-", "--", ":", "-.")  # with ten colours, forty runs can be told apart


def shown(curves: Sequence[Curves]) -> dict[str, str]:
    """Name and title of each curve to show that any run has, in the order of ``SHOWN``."""
    names = list(dict.fromkeys(name for own in curves for name in own))
    found = {}
    for start, title in SHOWN.items():
        for name in names:
            if name == start or (start.startswith("dual/") and name.startswith(f"{start}_")):
                found[name] = title if name == start else f"{title}, {name.removeprefix(f'{start}_')}"
    return found


def plot_curves(names: Sequence[str], curves: Sequence[Curves], out: Path) -> None:
    """A panel for each curve of ``shown``, with a line for each run. A long curve is a running mean."""
    panels = shown(curves)
    columns = min(3, len(panels))
    rows = -(-len(panels) // max(columns, 1))
    figure = Figure(figsize=(4.2 * columns, 2.8 * rows + 0.4), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for ax, (measure, title) in zip(axes, panels.items(), strict=False):
        for k, own in enumerate(curves):
            if measure not in own:
                continue
            steps, values = own[measure]
            window = 1 if len(values) <= FEW else SMOOTHED
            smooth = np.convolve(values, np.ones(window) / window, "valid")
            marker = "o" if len(values) <= FEW else ""
            style = {"color": f"C{k % 10}", "linestyle": LINES[k // 10 % len(LINES)], "marker": marker}
            ax.plot(steps[window - 1 :], smooth, markersize=3, linewidth=1.2, label=names[k], **style)
        ax.set_title(title, fontsize=SIZE)
        ax.set_xlabel("optimizer step", fontsize=SIZE)
        clean(ax)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    lines = {label: line for ax in axes for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    if lines:
        figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=SIZE)
    figure.savefig(out)


def last_values(names: Sequence[str], curves: Sequence[Curves]) -> list[list[str]]:
    """The last value of each shown curve, a row for each run, behind its name and its last optimizer step."""
    rows = []
    for name, own in zip(names, curves, strict=True):
        steps = [steps[-1] for steps, _ in own.values()]
        cells = [f"{own[measure][1][-1]:.4g}" if measure in own else "n/a" for measure in shown(curves)]
        rows.append([name, f"{max(steps):,}" if steps else "n/a", *cells])
    return rows


def curves_table(names: Sequence[str], curves: Sequence[Curves]) -> Table:
    """``last_values`` for a terminal."""
    table = Table(title="last values of metrics.csv; they are not paired, and have no intervals", show_lines=True)
    for heading in ("run", "step", *shown(curves).values()):
        table.add_column(heading, overflow="fold")
    for row in last_values(names, curves):
        table.add_row(*row)
    return table


def curves_markdown(names: Sequence[str], curves: Sequence[Curves], figure: str) -> list[str]:
    """The lines of a section with the figure and ``last_values``."""
    heads = ["run", "step", *shown(curves).values()]
    lines = ["", "## Curves", "", f"![curves of training]({figure})", "", f"| {' | '.join(heads)} |"]
    lines += ["|---" * len(heads) + "|", *(f"| {' | '.join(row)} |" for row in last_values(names, curves)), ""]
    return [*lines, "Last values of `metrics.csv`. They are not paired by pair, and have no intervals.", ""]


def write_curves(path: Path, names: Sequence[str], curves: Sequence[Curves]) -> None:
    """Write every curve of every run as rows of run, name, step and value."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("run", "name", "step", "value"))
        for name, own in zip(names, curves, strict=True):
            for measure, (steps, values) in own.items():
                writer.writerows((name, measure, step, value) for step, value in zip(steps, values, strict=True))
