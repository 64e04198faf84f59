"""Intervals of shares that hold at 0 and at 1, for samples that come in clusters.

A share's interval is exact (Clopper & Pearson 1934, Biometrika 26, 404-413) on the effective sample size of
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


def share_bounds(share: float, variance: float, count: int, clusters: float) -> Bounds:
    """The 95 % interval of a share in [0, 1].

    Args:
        share: Its estimate.
        variance: Of the estimate, by clusters. An estimate of 0 is not believed: each cluster then counts once.
        count: Samples.
        clusters: Effective clusters (sum m)^2 / sum m^2 of their sizes m; NaN bounds below two.
    """
    if not clusters >= 1.5:
        return math.nan, math.nan
    effective = min(float(count), share * (1 - share) / variance) if variance > 0 else clusters
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
