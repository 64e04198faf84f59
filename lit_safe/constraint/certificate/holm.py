"""Verdicts on several limits at once: Holm 1979 (Scandinavian Journal of Statistics 6, 65-70).

Letters: S strata, such as categories of harm or groups of prompts.
"""

from collections.abc import Mapping
from typing import NamedTuple

from lit_safe.constraint.certificate.sample import Sample, check_delta
from lit_safe.constraint.certificate.verdict import Finding, Verdict, needed


class Family(NamedTuple):
    """Findings of all strata, in their order, and the name of the worst.

    The probability that any HOLDS of the family is wrong is at most ``delta``, and so is the probability that any DOES
    NOT HOLD is wrong. ``Finding.delta`` is the level at which a stratum was tested, ``delta / S`` or more. The
    ``worst`` stratum is that of ``worst``.
    """

    findings: dict[str, Finding]
    worst: str
    delta: float


def judge_all(samples: Mapping[str, Sample], limits: Mapping[str, float], delta: float) -> Family:
    """The verdict on each stratum, with the chance of a wrong one controlled over all of them.

    Holm's method orders the strata by their p-values and tests the k-th at ``delta / (S - k + 1)``, until one fails.
    The p-values may depend on each other in any way. Both directions are tested, each as a family of its own.

    Args:
        samples: A sample for each stratum.
        limits: Its limit, in the units of its draws.
        delta: Probability of any wrong HOLDS, and of any wrong DOES NOT HOLD.

    Raises:
        ValueError: If there are no strata, or the names differ.
    """
    check_delta(delta)
    if not samples or set(samples) != set(limits):
        raise ValueError(f"strata {sorted(samples)} and limits of {sorted(limits)} do not fit each other")
    above = holm({name: sample.p_above(limits[name]) for name, sample in samples.items()}, delta)
    within = holm({name: sample.p_within(limits[name]) for name, sample in samples.items()}, delta)
    findings = {}
    for name, sample in samples.items():
        verdict = Verdict.UNDECIDED
        if above[name].rejected:
            verdict = Verdict.HOLDS
        elif within[name].rejected:
            verdict = Verdict.DOES_NOT_HOLD
        limit, count = limits[name], None
        if verdict == Verdict.UNDECIDED:
            count = needed(sample, limit, above[name].level)
        level = within[name].level if verdict == Verdict.DOES_NOT_HOLD else above[name].level
        lower, upper = sample.lower(within[name].level), sample.upper(above[name].level)
        findings[name] = Finding(verdict, sample.mean, lower, upper, limit, level, sample.count, count)
    return Family(findings, worst(samples, limits, delta), delta)


def worst(samples: Mapping[str, Sample], limits: Mapping[str, float], delta: float) -> str:
    """The stratum whose upper bound at ``delta / S`` is highest above its limit."""
    excess = {name: sample.upper(delta / len(samples)) - limits[name] for name, sample in samples.items()}
    return max(excess, key=lambda name: excess[name])


class Step(NamedTuple):
    """The level at which Holm's method tests a hypothesis, and whether it is rejected."""

    level: float
    rejected: bool


def holm(p: Mapping[str, float], delta: float) -> dict[str, Step]:
    """Holm's step-down test of several hypotheses. Hypotheses after the first one that stays share its level.

    The probability of rejecting any true hypothesis is at most ``delta`` (Holm 1979, section 3).
    """
    found: dict[str, Step] = {}
    left, rejecting = len(p), True
    for name in sorted(p, key=lambda name: p[name]):
        rejecting = rejecting and p[name] <= delta / left
        found[name] = Step(delta / left, rejecting)
        left -= rejecting
    return found
