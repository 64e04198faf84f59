"""Numbers of the step benchmark from what both sides measured."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tests.peers.step.cases import Case

Measured = Mapping[str, Any]  # what ``side`` writes


def of_side(rounds: Sequence[Measured], tokens: float, matmul: float, whole: bool) -> dict[str, Any]:
    """The numbers of one side.

    Args:
        rounds: What it measured in each round.
        tokens: Mean number of tokens of a step, each sequence counted with its prompt and without padding.
        matmul: Largest measured rate of matrix products, in operations a second.
        whole: Time a step takes as a share of whole runs, with the scoring of the reference. Otherwise the median
            of the steps after the first.
    """
    seconds, operations = (
        statistics.median(_per_step(one, unit, ahead, whole) for one in rounds)
        for unit, ahead in (("seconds", "ahead"), ("operations", "ahead_operations"))
    )
    runs = rounds[0]["runs"]
    return {
        "step_seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "peak_gib": statistics.median(one["peak_bytes"] for one in rounds) / 2**30,
        "peak_beyond_imports_gib": statistics.median(one["peak_bytes"] - one["imported_bytes"] for one in rounds)
        / 2**30,
        "ahead_seconds": statistics.median(sum(run["ahead"] for run in one["runs"]) for one in rounds),
        "counted_operations": operations,
        "share_of_matmul_peak": operations / seconds / matmul,
        "losses": [run["losses"] for run in runs],
        "step_seconds_of_rounds": [_per_step(one, "seconds", "ahead", whole) for one in rounds],
    }


def _per_step(measured: Measured, unit: str, ahead: str, whole: bool) -> float:
    runs = measured["runs"]
    if whole:
        return (sum(run[ahead] for run in runs) + sum(sum(run[unit]) for run in runs)) / sum(
            len(run[unit]) for run in runs
        )
    return statistics.median(value for run in runs for value in (run[unit][1:] or run[unit]))


def of_case(case: Case, sides: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The sides of one case, and the ratios between them. Above 1, lit_safe is faster or counts fewer operations."""
    found: dict[str, Any] = {"case": case.name, "sides": dict(sides)}
    for what, key in (("ratio_trl", "step_seconds"), ("counted_ratio", "counted_operations")):
        for kind in ("default", "best"):
            found[f"{what}_{kind}"] = sides[f"trl {kind}"][key] / sides[f"lit_safe {kind}"][key]
    for kind in ("default", "best"):
        found[f"share_of_counted_{kind}"] = found[f"ratio_trl_{kind}"] / found[f"counted_ratio_{kind}"]
    found["memory_ratio_trl_default"] = sides["lit_safe default"]["peak_gib"] / sides["trl default"]["peak_gib"]
    expected = sides["trl default"]["losses"]
    found["max_loss_difference"] = max(_apart(side["losses"], expected) for side in sides.values())
    return found


def _apart(losses: Sequence[Sequence[float]], expected: Sequence[Sequence[float]]) -> float:
    """The largest difference of two sides' losses in nats."""
    return max(abs(a - b) for one, other in zip(losses, expected, strict=True) for a, b in zip(one, other, strict=True))


def lines(report: Mapping[str, Any]) -> list[str]:
    """The report as a table."""
    told: list[str] = []
    for case in report["cases"]:
        told.append(f"== {case['case']}")
        told.append(f"{'':28} {'s a step':>10} {'tokens/s':>10} {'GiB':>7} {'10^9 op':>9} {'of peak':>8}")
        told += [
            f"{name:28} {side['step_seconds']:10.3f} {side['tokens_per_second']:10.0f} {side['peak_gib']:7.2f} "
            f"{side['counted_operations'] / 1e9:9.1f} {100 * side['share_of_matmul_peak']:7.1f}%"
            for name, side in case["sides"].items()
        ]
        told.append(
            f"TRL / lit_safe: out of the box {case['ratio_trl_default']:.2f} "
            f"(counted {case['counted_ratio_default']:.2f}), at its best {case['ratio_trl_best']:.2f} "
            f"(counted {case['counted_ratio_best']:.2f}); memory lit_safe / TRL "
            f"{case['memory_ratio_trl_default']:.2f}; losses differ by at most {case['max_loss_difference']:.1e}"
        )
    return told
