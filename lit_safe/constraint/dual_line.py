"""What the screen says of each estimate of the cost: one line for each constraint.

Letters: C constraints.
"""

import math

from torch import Tensor

from lit_safe.constraint.limits import Standing
from lit_safe.types import CostEstimate
from lit_safe.words import interval, told_apart

SAID = {"met": "met", "not met": "violated", "undecided": "undecided"}


def dual_lines(
    standing: Standing, estimate: CostEstimate, before: Tensor, after: Tensor, reads_multiplier: bool
) -> list[str]:
    """The end of an epoch: cost with its bounds, limit and verdict, multiplier, share of unsafe responses and drift.

    Args:
        standing: The estimate beside its limits, in cost units. Its bounds hold with 95 % each.
        estimate: For what else it measured.
        before: The multiplier [] or [C] that the epoch trained under, in nats per cost unit.
        after: The one of the next epoch.
        reads_multiplier: Whether the objective reads it; it is left out otherwise.
    """
    epoch = f"epoch {standing.epoch}"
    several = len(standing.names) > 1
    columns = (standing.names, standing.cost, *standing.both_bounds, standing.limit, standing.verdicts)
    steps = zip(before.reshape(-1).tolist(), after.reshape(-1).tolist(), strict=True)
    lines: list[str] = []
    for (name, cost, low, high, limit, verdict), step in zip(zip(*columns, strict=True), steps, strict=True):
        of = f" of {name}" if several else ""
        parts = [f"cost{of} {interval(cost, low, high)}, limit {_limit(limit)}: {SAID[verdict]}"]
        if reads_multiplier:
            parts.append(_step(*step))
        if not lines:  # the rest is not of a single constraint
            parts += [_unsafe(estimate), _malformed(estimate), _drift(estimate)]
        lines.append("  ".join([epoch if not lines else " " * len(epoch), *filter(None, parts)]))
    return lines


def _limit(value: float) -> str:
    short = f"{value:.2f}"
    return short if float(short) == value else f"{value:g}"


def _step(before: float, after: float) -> str:
    was, now = told_apart([before, after])
    return f"λ {now}" if before == after else f"λ {was} → {now}"


def _unsafe(estimate: CostEstimate) -> str:
    share = f"unsafe {100 * float(estimate.unsafe):.0f} %"
    ends = [estimate.also.get(f"dual/unsafe_{end}", math.nan) for end in ("low", "high")]
    return share if any(map(math.isnan, ends)) else f"{share} [{100 * ends[0]:.0f}, {100 * ends[1]:.0f}]"


def _malformed(estimate: CostEstimate) -> str:
    """Shares of responses that were cut or empty, where they are at least half a percent."""
    shares = {"cut": estimate.also.get("dual/truncated", 0.0), "empty": estimate.also.get("dual/empty", 0.0)}
    return "  ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items() if share >= 0.005)


def _drift(estimate: CostEstimate) -> str:
    kl = estimate.also.get("drift/kl_per_token")
    return "" if kl is None else f"KL {kl:.2g}/token"
