"""Intervals of means and ratios of sums that allow for skewed values and few, uneven clusters.

The interval is the union of two. One is Student's t. The other is the studentised bootstrap over clusters (Efron &
Tibshirani 1993, An Introduction to the Bootstrap, section 12.5; for clusters Cameron, Gelbach & Miller 2008, Review of
Economics and Statistics 90, 414-427), which follows the skew of the values. With few clusters both are too short, so

- both use the degrees of freedom of as many even clusters as tell as much (Kish 1965, Survey Sampling, section 8.2);
- the bootstrap's tails hold 2.5 % * k / (k + 12) each, for k such clusters. The constant 12 was chosen by simulation;
  ``docs/intervals.md`` has the coverage that results.

Letters: G clusters, R resamples.
"""

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit  # type: ignore[import-untyped]

from lit_safe.hashing import hash64
from lit_safe.intervals import Bounds

Floats = npt.NDArray[np.float64]
Parts = tuple[tuple[Floats, Floats], ...]
"""Numerators and denominators by cluster, ([G], [G]), of one ratio of sums or of two."""

FEWEST = 6
"""Clusters below which a mean has no interval: none that we tried covers skewed values there."""

RESAMPLES = 1999
MOST = 1000
"""Clusters above which Student's t stands alone: a mean of so many is hardly skewed."""


def mean_bounds(estimate: float, stderr: float, parts: Parts, effective: float, scale: float) -> Bounds:
    """The 95 % interval of a ratio of sums, or of the difference of two.

    Args:
        estimate: The ratio, or the first minus the second.
        stderr: Its clustered standard error.
        parts: For each ratio, what each cluster adds to its numerator and to its denominator, [G] both. The numerators
            are those of deviations from the ratio, so that each sums to 0.
        effective: As many even clusters as tell as much.
        scale: The largest value; a standard error of rounding alone, relative to it, counts as 0.

    Returns:
        NaN twice where clusters are fewer than ``FEWEST`` or do not vary.
    """
    clusters = len(parts[0][0])
    if clusters < FEWEST or not effective >= 1.5 or not stderr > 1e-12 * scale:
        return math.nan, math.nan
    student = float(stdtrit(max(effective - 1, 1.0), 0.975))
    below = above = student
    if clusters <= MOST:
        t_R = _studentised(parts)
        t_R *= student / float(stdtrit(clusters - 1, 0.975))
        rank = max(int((RESAMPLES + 1) * 0.025 * effective / (effective + 12)), 1)
        below, above = max(float(t_R[RESAMPLES - rank]), student), max(-float(t_R[rank - 1]), student)
    return estimate - below * stderr, estimate + above * stderr


def _studentised(parts: Parts) -> Floats:
    """[R] sorted: the deviation of each resample's estimate, over its own standard error."""
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
        t_R = change_R / np.sqrt(clusters / (clusters - 1) * square_R.clip(0))
    return np.sort(np.nan_to_num(t_R, nan=0.0, posinf=np.inf, neginf=-np.inf))


@lru_cache(maxsize=8)
def _resamples(clusters: int) -> Floats:
    """[R, G] how often each resample holds each cluster: the same for every estimate of as many clusters."""
    generator = np.random.default_rng(hash64("bootstrap", clusters))
    return generator.multinomial(clusters, np.full(clusters, 1 / clusters), size=RESAMPLES).astype(np.float64)
