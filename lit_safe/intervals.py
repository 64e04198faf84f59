"""Intervals of shares that hold at 0 and at 1, for samples that come in clusters.

A share's interval is exact (Clopper & Pearson 1934, Biometrika 26, 404-413) on an effective sample size, as in
Korn & Graubard 1998 (Survey Methodology 24, 193-201). A paired difference of shares combines the intervals of the two
kinds of change by square-and-add (Newcombe 1998, Statistics in Medicine 17, 2635-2650, method 10), with the correlation
that the clusters show (Zou & Donner 2008, Statistics in Medicine 27, 1693-1702).

Letters: G clusters.
"""

import math

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv, stdtrit  # type: ignore[import-untyped]

Floats = npt.NDArray[np.float64]
Bounds = tuple[float, float]


ALIKE = 0.5
"""How many clusters' worth of variance is assumed beside what was seen, as of clusters whose samples are all alike."""


def share_bounds(share: float, residual_G: Floats, count: int, clusters: float, alike: float = ALIKE) -> Bounds:
    """The 95 % interval of a share in [0, 1].

    The effective sample size is the one that the variance between clusters implies. Where few clusters decide that
    variance it is often too small, so it is averaged with the variance of clusters whose samples are all alike.

    Args:
        share: Its estimate.
        residual_G: What each cluster adds to the estimate's deviation.
        count: Samples.
        clusters: Effective clusters (sum m)^2 / sum m^2 of their sizes m; NaN bounds below 1.5.
        alike: The weight of that second variance, in clusters. Chosen by simulation (``docs/intervals.md``).
    """
    if not clusters >= 1.5:
        return math.nan, math.nan
    square_G = np.square(residual_G)
    total = float(square_G.sum())
    effective = clusters
    if total > 1e-24:
        G = len(residual_G)
        told = share * (1 - share) / (G / (G - 1) * total)
        known = total * total / float(np.square(square_G).sum())  # clusters that decide the variance
        effective = min(told, float(count), (known + alike) / (known / told + alike / clusters))
    # Korn & Graubard 1998, section 2: n* = n_eff (t_{n-1} / t_{G-1})^2
    effective *= float(stdtrit(max(count - 1, 1), 0.975) / stdtrit(min(clusters, count) - 1, 0.975)) ** 2
    hits, misses = share * effective, (1 - share) * effective
    low = float(betaincinv(hits, misses + 1, 0.025)) if hits > 1e-9 else 0.0
    high = float(betaincinv(hits + 1, misses, 0.975)) if misses > 1e-9 else 1.0
    return low, high


def difference_bounds(up: float, down: float, bounds_up: Bounds, bounds_down: Bounds, correlation: float) -> Bounds:
    """The 95 % interval of ``up - down``, the shares of samples that rose and that fell (Zou & Donner 2008, eq. 4)."""

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(one * one + other * other - 2 * correlation * one * other, 0.0))

    below = reach(up - bounds_up[0], bounds_down[1] - down)
    above = reach(bounds_up[1] - up, down - bounds_down[0])
    return max(up - down - below, -1.0), min(up - down + above, 1.0)


def correlation(one_G: Floats, other_G: Floats) -> float:
    """Of what clusters add to two shares; 0 where one of them never varies."""
    scale = math.sqrt(float(np.square(one_G).sum() * np.square(other_G).sum()))
    return float((one_G * other_G).sum()) / scale if scale > 0 else 0.0
