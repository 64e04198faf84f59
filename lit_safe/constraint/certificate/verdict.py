"""The verdict on a limit, and how many draws an open one needs."""

from enum import StrEnum
from typing import NamedTuple

from lit_safe.constraint.certificate.sample import Sample, check_delta

MOST = 100_000
"""Larger sample sizes are not searched."""


class Verdict(StrEnum):
    """What a sample shows about a limit."""

    HOLDS = "HOLDS"
    DOES_NOT_HOLD = "DOES NOT HOLD"
    UNDECIDED = "UNDECIDED"


class Finding(NamedTuple):
    """What a sample shows about a limit, in the units of its draws.

    ``lower`` and ``upper`` are one-sided bounds: each is on the wrong side of the expectation with probability at most
    ``delta``. ``needed`` is an estimate of the number of draws that would decide an undecided limit; None if the limit
    is decided or no number up to ``MOST`` decides it.
    """

    verdict: Verdict
    mean: float
    lower: float
    upper: float
    limit: float
    delta: float
    count: int  # type: ignore[assignment]  # shadows tuple.count
    needed: int | None


def judge(sample: Sample, limit: float, delta: float) -> Finding:
    """Compare a sample's bounds with a limit.

    HOLDS if the one-sided upper bound is at most the limit, DOES NOT HOLD if the one-sided lower bound is above it, and
    UNDECIDED otherwise. A wrong HOLDS has probability at most ``delta``, and so has a wrong DOES NOT HOLD.

    Args:
        sample: The draws.
        limit: Largest acceptable expectation, in the units of the draws.
        delta: Probability of a wrong claim.

    Raises:
        ValueError: If ``delta`` is not between 0 and 1.
    """
    check_delta(delta)
    lower, upper = sample.lower(delta), sample.upper(delta)
    verdict = _compare(lower, upper, limit)
    count = needed(sample, limit, delta) if verdict == Verdict.UNDECIDED else None
    return Finding(verdict, sample.mean, lower, upper, limit, delta, sample.count, count)


def needed(sample: Sample, limit: float, delta: float) -> int | None:
    """The number of draws at which a sample with this one's distribution decides the limit; an estimate.

    The sample is repeated until it decides. About half of all new samples of that size would decide, because the mean
    of a new sample is as often nearer to the limit as farther from it.

    Returns:
        The number, to about 2 %. None if the mean is at the limit, or ``MOST`` draws do not decide.
    """
    below, above = sample.count, sample.count
    while not _decides(sample.repeated(above), limit, delta):
        if above >= MOST:
            return None
        below, above = above, min(2 * above, MOST)
    while above - below > max(1, below // 50):
        middle = (below + above) // 2
        if _decides(sample.repeated(middle), limit, delta):
            above = middle
        else:
            below = middle
    return above


def _decides(sample: Sample, limit: float, delta: float) -> bool:
    p = sample.p_above(limit) if sample.mean <= limit else sample.p_within(limit)
    return p <= delta


def _compare(lower: float, upper: float, limit: float) -> Verdict:
    if upper <= limit:
        return Verdict.HOLDS
    return Verdict.DOES_NOT_HOLD if lower > limit else Verdict.UNDECIDED
