"""The papers' tables from what was measured: reward and cost, helpfulness against harmlessness, Δ, counts, time."""

from collections.abc import Iterable, Sequence

import numpy as np

from lit_safe.reproduction.measured import MEASURES, Seen
from lit_safe.reproduction.methods import METHODS, title
from lit_safe.statistics.pooled import Pooled
from lit_safe.words import duration

HEADS = {"reward": "reward", "cost": "cost", "unsafe": "unsafe %", "refused": "refused harmless %"}
SHARES = ("unsafe", "refused")


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]


def cell(measure: str, found: Pooled | None, *, signed: bool = False) -> str:
    """A mean with its interval; shares in percent."""
    if found is None:
        return ""
    if measure not in SHARES:
        return found.text(1, 3, signed=signed)
    return found.within(-1.0 if signed else 0.0, 1.0).text(100, 1, signed=signed)


def means(seen: Seen) -> list[str]:
    """Every measure of every method, with the spread over responses behind ± where responses were sampled."""
    measures = [name for name in MEASURES if any(seen.mean(method, name) for method in seen.methods)]
    spread = any(seen.spread.values())
    heads = ["method", *(HEADS[name] for name in measures), *(["± over responses: reward, cost"] if spread else [])]
    rows = []
    for method in seen.methods:
        values = [cell(name, seen.mean(method, name)) for name in measures]
        own = seen.spread.get(method, {})
        parts = [f"{own[name]:.2f}" if name in own else "n/a" for name in ("reward", "cost")]
        rows.append([title(method), *values, *([", ".join(parts)] if spread else [])])
    return markdown(heads, rows)


def helpfulness(seen: Seen, low: str = "sft", high: str = "dpo_helpful") -> list[str]:
    """Reward on the scale of the SafeDPO paper, 0 for SFT and 10 for DPO-HELPFUL, beside the share of safe responses.

    Empty if one of the two has no reward, or the second is not above the first.
    """
    bottom, top = seen.mean(low, "reward"), seen.mean(high, "reward")
    if bottom is None or top is None or not top.mean > bottom.mean:
        return []
    scale = 10 / (top.mean - bottom.mean)
    rows = []
    for method in seen.methods:
        reward, unsafe = seen.mean(method, "reward"), seen.mean(method, "unsafe")
        if reward is None or unsafe is None:
            continue
        ends = [f"{scale * (value - bottom.mean):.2f}" for value in (reward.mean, reward.low, reward.high)]
        kept = unsafe.within(0.0, 1.0)
        safe = [f"{100 * (1 - value):.1f}" for value in (kept.mean, kept.high, kept.low)]
        cost = seen.mean(method, "cost")
        harmless = "" if cost is None else f"{-cost.mean:.3f}"
        rows.append([title(method), f"{ends[0]} [{ends[1]}, {ends[2]}]", f"{safe[0]} [{safe[1]}, {safe[2]}]", harmless])
    return markdown(("method", "helpfulness", "harmless responses %", "harmlessness (- cost)"), rows)


def sweep(seen: Seen, main: float | None = None) -> list[str]:
    """Unsafe and refused share, reward and cost by SafeDPO's offset. Empty with fewer than two offsets.

    Args:
        seen: What was measured.
        main: The offset of ``safe_dpo``.
    """
    known = {name: METHODS[name].offset for name in seen.methods if name in METHODS} | {"safe_dpo": main}
    offsets = sorted((offset, name) for name, offset in known.items() if offset is not None and name in seen.methods)
    if len(offsets) < 2:
        return []
    rows = [
        [f"{offset:g}", *(cell(name, seen.mean(method, name)) for name in ("unsafe", "refused", "reward", "cost"))]
        for offset, method in offsets
    ]
    return markdown(("Δ", "unsafe %", "refused harmless %", "reward", "cost"), rows)


def crossed(seen: Seen, one: str, other: str) -> tuple[float, float, float, float] | None:
    """Expected numbers of prompts at which both, only ``one``, only ``other`` or neither answer safely.

    Both answer a prompt independently, given the prompt: with p and q the probabilities of a safe response, the parts
    are p q, p (1 - q), (1 - p) q and (1 - p) (1 - q), summed over prompts and averaged over seeds. With one response to
    a prompt these are the counts of the SafeDPO paper's table 12. None if they share no prompt.
    """
    mine, theirs = (seen.cells.get(name, {}).get("unsafe", {}) for name in (one, other))
    shared = [key for key in mine if key in theirs]
    if not shared:
        return None
    p = 1 - np.array([mine[key] for key in shared])
    q = 1 - np.array([theirs[key] for key in shared])
    seeds = len({seed for seed, _ in shared})
    parts = (p * q, p * (1 - q), (1 - p) * q, (1 - p) * (1 - q))
    return tuple(float(part.sum()) / seeds for part in parts)  # type: ignore[return-value]  # a tuple of four


def cross_counts(seen: Seen, one: str) -> list[str]:
    """``crossed`` of one method with every other."""
    rows = []
    for other in seen.methods:
        found = None if other == one else crossed(seen, one, other)
        if found is not None:
            rows.append([title(other), *(f"{count:.1f}" for count in found)])
    safe = title(one)
    heads = (f"{safe} and", "both safe", f"only {safe} safe", "only the other safe", "both unsafe")
    return markdown(heads, rows) if rows else []


def needs(seen: Seen) -> list[str]:
    """Networks, labels and time of each method."""
    rows = []
    for method in seen.methods:
        times = seen.seconds.get(method)
        spent = "" if not times else duration(float(np.mean(times)))
        known = METHODS.get(method)
        rows.append([title(method), known.networks if known else "", known.labels if known else "", spent])
    return markdown(("method", "networks", "labels", "time of its stage"), rows)
