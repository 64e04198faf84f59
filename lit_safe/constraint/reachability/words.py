"""What a reachability estimate says, as sentences, as a table and as JSON values."""

import math
from typing import Any

from lit_safe.constraint.reachability.reach import FEW, Point, Reach
from lit_safe.words import told_apart

COST_ONLY = (
    "No reward was given, so the estimate tilts the reference by cost alone (r = 0). Training also follows the reward: "
    "where it favours unsafe responses, the multiplier has to be larger than here."
)
MORE = "--samples_per_prompt"


def findings(found: Reach) -> list[str]:
    """One sentence or two for each constraint: whether its limit is in reach, and by which multiplier."""
    return [_finding(found, c) for c in range(len(found.names))]


def suggestions(found: Reach) -> list[str]:
    """What to do about limits that are not reached and about estimates that few samples carry."""
    lines = []
    for c, verdict in enumerate(found.verdicts):
        if verdict != "not reached":
            continue
        of = _of(found, c)
        lines.append(
            f"Raise the limit{of} to {_up(found.limit_in_reach[c])} or more, which λ = {found.maximum[c]:g} meets with "
            "95 % confidence."
        )
        if found.limit[c] <= found.smallest[c]:
            lines.append(
                f"No multiplier meets the limit{of} on these samples: the mean of each prompt's cheapest of "
                f"{found.per_prompt} responses is {found.smallest[c]:.3g}. Sample more ({MORE}), or start from a "
                "reference that gives cheaper responses (fine-tune it on safe ones)."
            )
        else:
            lines.append(f"Or raise dual.maximum: on these samples costs down to {found.smallest[c]:.3g} exist.")
    if not found.reliable:
        lines.append(
            f"The estimate rests on {found.optimum.effective_median:.1f} effective samples per prompt (median), fewer "
            f"than {FEW:g}: sample more ({MORE}, now {found.per_prompt}) before you trust it."
        )
    return lines


def notes(found: Reach, cost_only: bool, truncated: float, empty: float) -> list[str]:
    """What the estimate does not show."""
    lines = [COST_ONLY] if cost_only else []
    lines.append(
        "The estimate is of the objective's optimum. A trained policy is between the reference and this optimum, and "
        "scores are only as good as their scorers."
    )
    lines.append(f"KL estimates are at most about log K = {math.log(found.per_prompt):.2f} nats on these samples.")
    if truncated or empty:
        lines.append(
            f"{100 * truncated:.1f} % of the responses were cut before their stop token and {100 * empty:.1f} % were "
            "empty. They are scored as they are."
        )
    return lines


def table(found: Reach) -> list[str]:
    """The grid and the optimum as a Markdown table."""
    heads = ["λ", *(f"E[c]{_of(found, c)}" for c in range(len(found.names)))]
    heads += ["E[r]", "KL (nats)", "effective samples: median", "least", "dual"]
    others = [point for point in found.grid if point.multiplier != found.optimum.multiplier]
    rows = [*(("", point) for point in others), ("**", found.optimum)]
    body = [_row(point, mark) for mark, point in sorted(rows, key=lambda row: (row[1].multiplier, row[0]))]
    return [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *body]


def page(found: Reach, lines: list[str], facts: dict[str, Any]) -> str:
    """The Markdown page: findings, table, halves, facts."""
    one, other = (", ".join(f"{v:.3g}" for v in half) for half in found.halves)
    return "\n".join(
        [
            "# Is the limit in reach?",
            "",
            *(f"**{line}**\n" for line in findings(found)),
            *(f"- {line}" for line in suggestions(found)),
            "",
            "![E[c] of the optimum by multiplier](reach.png)",
            "",
            *table(found),
            "",
            "The bold row is the multiplier that minimises the dual function up to the maximum; its duality gap is "
            f"{found.optimum.gap:.3g} nats. Errors are one standard error, clustered by prompt.",
            "",
            f"Each half of the {found.prompts} prompts gives λ = {one} and λ = {other}. One half's λ loses "
            f"{found.half_regret:.2g} nats of the dual function on the other half.",
            "",
            *(f"- {line}" for line in lines),
            "",
            "## What was sampled",
            "",
            *(f"- {name}: {value}" for name, value in facts.items()),
            "",
        ]
    )


def as_json(found: Reach, facts: dict[str, Any]) -> dict[str, Any]:
    """Plain values; what is not known is null."""
    values = {k: v for k, v in found._asdict().items() if k not in ("optimum", "grid")}
    return _plain(
        {
            **facts,
            **values,
            "verdicts": found.verdicts,
            "clear": found.clear,
            "reliable": found.reliable,
            "findings": findings(found),
            "suggestions": suggestions(found),
            "optimum": found.optimum._asdict(),
            "grid": [point._asdict() for point in found.grid],
        }
    )


def _finding(found: Reach, c: int) -> str:
    of, limit, best = _of(found, c), f"{found.limit[c]:g}", found.optimum
    cost = f"{best.cost[c]:.3g} ± {best.stderr[c]:.2g}"
    doubt = "" if found.clear[c] else " The difference is within the error."
    if found.verdicts[c] == "does not bind":
        return f"The limit {limit}{of} does not bind: λ* = 0, which is plain DPO. E[c] there is {cost}.{doubt}"
    if found.verdicts[c] == "reached":
        return f"λ*{of} = {best.multiplier[c]:.3g} ± {found.multiplier_stderr[c]:.2g} meets the limit {limit}."
    return (
        f"Limit {limit}{of} not reached with λ ≤ {found.maximum[c]:g} on {found.per_prompt} samples: E[c] at "
        f"λ = {found.maximum[c]:g} is {cost} (effective sample size {best.effective_median:.1f}).{doubt}"
    )


def _row(point: Point, mark: str) -> str:
    costs = [f"{c:.3f} ± {e:.3f}" for c, e in zip(point.cost, point.stderr, strict=True)]
    equal = len(set(point.multiplier)) == 1
    values = [", ".join(f"{v:.3g}" for v in point.multiplier[: 1 if equal else None]), *costs, f"{point.reward:.3f}"]
    values += [f"{point.kl:.3f} ± {point.kl_stderr:.3f}", f"{point.effective_median:.1f}"]
    values += [f"{point.effective_least:.1f}", f"{point.dual:.3f}"]
    return f"| {' | '.join(f'{mark}{value}{mark}' for value in values)} |"


def _of(found: Reach, c: int) -> str:
    return f" of {found.names[c]}" if len(found.names) > 1 else ""


def _up(value: float) -> str:
    """Three significant digits, rounded up."""
    step = 10.0 ** (math.floor(math.log10(abs(value))) - 2) if value else 0.01
    return told_apart([math.ceil(value / step) * step], max(0, -math.floor(math.log10(step))))[0]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
