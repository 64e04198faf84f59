"""The report of a reproduction: ours and the papers' published figures, each in tables of their own."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lit_safe.report.plots import GREY, SIZE, clean
from lit_safe.report.tables import write_json
from lit_safe.reproduction.measured import MEASURES, Seen
from lit_safe.reproduction.methods import title
from lit_safe.reproduction.orderings import HOLDS, NAMES, Found, judged
from lit_safe.reproduction.published import published_table
from lit_safe.reproduction.tables import cell, cross_counts, helpfulness, markdown, means, needs, sweep
from lit_safe.statistics.pooled import Pooled

PAGE, SUMMARY, PLANE = "report.md", "summary.json", "plane.png"
COLOURS, MARKERS = 10, "osD"  # the next ten methods have the next marker


def write_report(
    folder: Path, seen: Seen, facts: Sequence[str], limit: float | None = None, offset: float | None = None
) -> Path:
    """Write ``report.md``, ``summary.json`` and ``plane.png``.

    Args:
        folder: Created if it does not exist.
        seen: What was measured.
        facts: Lines that say what was run, on what and when.
        limit: Limit on the cost, drawn in the plane; None draws none.
        offset: The offset of the run ``safe_dpo``; None leaves it out of the table of offsets.

    Returns:
        The path of the page.

    Raises:
        ValueError: If nothing was measured.
    """
    if not seen.methods:
        raise ValueError(f"{folder} holds no finished run: nothing was measured yet")
    folder.mkdir(parents=True, exist_ok=True)
    found = judged(seen)
    write_json(folder / SUMMARY, _summary(seen, found, facts))
    drawn = plot_plane(seen, folder / PLANE, limit)
    text = "\n".join(lines(seen, found, facts, drawn, offset))
    partial = folder / f".{PAGE}.tmp"
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, folder / PAGE)
    return folder / PAGE


def lines(
    seen: Seen, found: Sequence[Found], facts: Sequence[str], drawn: bool, offset: float | None = None
) -> list[str]:
    """The lines of the page."""
    part: list[tuple[str, list[str], str]] = [
        ("Orderings of the papers", _orderings(found), ORDERINGS_NOTE),
        ("Reward and cost", means(seen), MEANS_NOTE),
        ("Helpfulness and harmlessness", helpfulness(seen), HELPFULNESS_NOTE),
        ("The offset Δ of SafeDPO", sweep(seen, offset), ""),
        ("Safe and unsafe, by pairs of methods", cross_counts(seen, "safe_dpo"), CROSS_NOTE),
        ("Networks, labels and time", needs(seen), ""),
    ]
    out = ["# C-DPO and SafeDPO, reproduced", "", *facts, ""]
    out += [f"{sum(one.verdict == HOLDS for one in found)} of {len(found)} orderings hold at this scale.", ""]
    for heading, table, note in part:
        if len(table) > 2:
            out += [f"## Ours: {heading[0].lower()}{heading[1:]}", "", *table, "", *([note, ""] if note else [])]
    if drawn:
        out += [f"![reward against cost]({PLANE})", ""]
    return [*out, "## Published: what the papers print", "", PUBLISHED_NOTE, "", *published_table(), ""]


ORDERINGS_NOTE = (
    "A difference is paired by seed and prompt, with a 95 % interval over seeds and prompts "
    "(`lit_safe/statistics/pooled.py`). It holds if the interval has the sign of the claim alone. Intervals are not "
    "adjusted for the number of claims: of twenty, one may be wrong by chance."
)
MEANS_NOTE = "Means with 95 % intervals over seeds and prompts. With one seed they say nothing about other seeds."
HELPFULNESS_NOTE = (
    "The scale is the SafeDPO paper's: 0 is SFT and 10 is DPO-HELPFUL, both of this reproduction. The intervals take "
    "these two as known."
)
CROSS_NOTE = "Expected numbers of prompts if both answer independently, given the prompt."
PUBLISHED_NOTE = (
    "These figures are of other models, data and scorers: no figure above is to be compared with one here in size. "
    "docs/papers.md says how each was seen."
)


def _orderings(found: Sequence[Found]) -> list[str]:
    rows = [
        [
            one.ordering.text + (f" ({one.ordering.note})" if one.ordering.note else ""),
            "n/a" if one.difference is None else cell(one.ordering.measure, one.difference, signed=True),
            "" if one.difference is None else f"{one.difference.seeds}, {one.difference.prompts}",
            f"{one.verdict}: {one.advice}" if one.advice else one.verdict,
            f"{one.ordering.paper}: {one.ordering.figures}",
        ]
        for one in found
    ]
    return markdown(("claim", "our difference", "seeds, prompts", "verdict", "published, first and second"), rows)


def plot_plane(seen: Seen, path: Path, limit: float | None) -> bool:
    """Reward against cost of every method, with intervals. Draws nothing if no method has both."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    drawn = False
    for k, method in enumerate(seen.methods):
        reward, cost = seen.mean(method, "reward"), seen.mean(method, "cost")
        if reward is None or cost is None:
            continue
        drawn = True
        ax.errorbar(
            cost.mean,
            reward.mean,
            xerr=_ends(cost),
            yerr=_ends(reward),
            fmt=MARKERS[k // COLOURS % len(MARKERS)],
            color=f"C{k % COLOURS}",
            markersize=5,
            linewidth=0.8,
            label=title(method),
        )
    if not drawn:
        return False
    if limit is not None:
        ax.axvline(limit, color=GREY, linestyle="--", linewidth=1)
    ax.set_xlabel("mean cost (> 0 is unsafe)", fontsize=SIZE)
    ax.set_ylabel("mean reward", fontsize=SIZE)
    ax.legend(fontsize=SIZE - 1, frameon=False)
    clean(ax)
    figure.savefig(path)
    return True


def _ends(one: Pooled) -> list[list[float]] | None:
    return [[one.mean - one.low], [one.high - one.mean]] if one.known else None


def _summary(seen: Seen, found: Sequence[Found], facts: Sequence[str]) -> dict[str, Any]:
    measured = {
        method: {name: _plain(mean) for name in MEASURES if (mean := seen.mean(method, name)) is not None}
        for method in seen.methods
    }
    claims = [
        {
            "claim": one.ordering.text,
            "measure": NAMES[one.ordering.measure],
            "difference": None if one.difference is None else _plain(one.difference),
            "verdict": one.verdict,
            "advice": one.advice,
        }
        for one in found
    ]
    return {"facts": list(facts), "exact": seen.exact, "methods": measured, "orderings": claims}


def _plain(one: Pooled) -> dict[str, Any]:
    return {key: None if value != value else value for key, value in one._asdict().items()}
