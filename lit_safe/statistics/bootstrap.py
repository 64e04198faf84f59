"""Intervals of means and of ratios of sums, for skewed values and few clusters of unequal size.

The interval is the union of two intervals: Student's t and the studentised bootstrap over clusters (Efron & Tibshirani
1993, An Introduction to the Bootstrap, section 12.5; for clusters Cameron, Gelbach & Miller 2008, Review of Economics
and Statistics 90, 414-427). The bootstrap accounts for skew. With few clusters both intervals are too short. Therefore

- both use the degrees of freedom of the effective number k of clusters (Kish 1965, Survey Sampling, section 8.2);
- each tail of the bootstrap has 2.5 % * k / (k + 12). The constant 12 was chosen by simulation; ``docs/intervals.md``
  gives the resulting coverage.

Letters: G clusters, R resamples.
"""

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit  # type: ignore[import-untyped]

from lit_safe.hashing import hash64
from lit_safe.statistics.intervals import Bounds

Floats = npt.NDArray[np.float64]
Parts = tuple[tuple[Floats, Floats], ...]
"""For one ratio of sums or two: numerators and denominators by cluster, ([G], [G])."""

FEWEST = 6
"""Smallest number of clusters for an interval of a mean. With fewer, no interval that we tried covers skewed values."""

RESAMPLES = 1999
ROUNDING = 1e-6
MOST = 1000
"""Above this number of clusters only Student's t is used, because the mean is hardly skewed."""


def mean_bounds(estimate: float, stderr: float, parts: Parts, effective: float, scale: float) -> Bounds:
    """The 95 % interval of a ratio of sums, or of the difference of two.

    Args:
        estimate: The ratio, or the first ratio minus the second.
        stderr: Its clustered standard error.
        parts: For each ratio, each cluster's contribution to numerator and denominator, [G] both. The numerators are of
            deviations from the ratio, so they sum to 0.
        effective: Effective number of clusters.
        scale: The largest absolute value. A standard error at the level of rounding, relative to it, counts as 0.

    Returns:
        The bounds; (NaN, NaN) if there are fewer than ``FEWEST`` clusters or they do not vary.
    """
    clusters = len(parts[0][0])
    if clusters < FEWEST or not effective >= 1.5 or not stderr > 1e-12 * scale:
        return math.nan, math.nan
    student = float(stdtrit(max(effective - 1, 1.0), 0.975))
    below = above = student
    if clusters <= MOST:
        t_R = _studentised(parts, stderr)
        t_R *= student / float(stdtrit(clusters - 1, 0.975))
        rank = max(int((RESAMPLES + 1) * 0.025 * effective / (effective + 12)), 1)
        below, above = max(float(t_R[RESAMPLES - rank]), student), max(-float(t_R[rank - 1]), student)
    return estimate - below * stderr, estimate + above * stderr


def _studentised(parts: Parts, stderr: float) -> Floats:
    """[R] sorted: each resample's deviation from the estimate, divided by its own standard error.

    A resample without the few clusters that differ has a standard error of 0, up to rounding: it counts as infinite.
    """
    clusters = len(parts[0][0])
    weight_RG = _resamples(clusters)
    change_R = np.zeros(RESAMPLES)
    terms = []  # residuals are the sum of coefficient [R] times column [G]
    for sign, (numerator_G, denominator_G) in zip((1.0, -1.0), parts, strict=False):
        total_R = weight_RG @ denominator_G
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio_R = (weight_RG @ numerator_G) / total_R
            terms += [(sign / total_R, numerator_G), (-sign * ratio_R / total_R, denominator_G)]
        change_R += sign * ratio_R
    square_R = np.zeros(RESAMPLES)
    with np.errstate(divide="ignore", invalid="ignore"):
        for k, (one_R, one_G) in enumerate(terms):
            for j, (other_R, other_G) in enumerate(terms[: k + 1]):
                square_R += (1 if j == k else 2) * one_R * other_R * (weight_RG @ (one_G * other_G))
        error_R = np.sqrt(clusters / (clusters - 1) * square_R.clip(0))
        error_R[error_R < ROUNDING * stderr] = 0  # the squares cancel to about 1e-16, their root to 1e-8
        t_R = change_R / error_R
    return np.sort(np.nan_to_num(t_R, nan=0.0, posinf=np.inf, neginf=-np.inf))


@lru_cache(maxsize=8)
def _resamples(clusters: int) -> Floats:
    """[R, G] counts of each cluster in each resample. They depend only on the number of clusters."""
    generator = np.random.default_rng(hash64("bootstrap", clusters))
    return generator.multinomial(clusters, np.full(clusters, 1 / clusters), size=RESAMPLES).astype(np.float64)
