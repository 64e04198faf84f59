"""Intervals of shares of clustered samples. They are also valid for estimates of 0 and 1.

The interval of a share is the exact one (Clopper & Pearson 1934, Biometrika 26, 404-413) with an effective sample size,
as in Korn & Graubard 1998 (Survey Methodology 24, 193-201). The interval of a paired difference of shares combines the
intervals of the two kinds of change by square-and-add (Newcombe 1998, Statistics in Medicine 17, 2635-2650, method 10),
with their correlation over clusters (Zou & Donner 2008, Statistics in Medicine 27, 1693-1702).

Letters: G clusters.
"""

import math

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv, stdtrit  # type: ignore[import-untyped]

Floats = npt.NDArray[np.float64]
Bounds = tuple[float, float]


ALIKE = 0.5
"""Weight, in clusters, of an assumed variance (that of clusters with equal samples) beside the measured one."""


def share_bounds(share: float, residual_G: Floats, count: int, clusters: float, alike: float = ALIKE) -> Bounds:
    """The 95 % interval of a share in [0, 1].

    The effective sample size follows from the variance between clusters. If few clusters determine this variance, it is
    often too small. It is therefore averaged with the variance of clusters whose samples are all equal.

    Args:
        share: The estimated share.
        residual_G: Each cluster's contribution to the estimate's deviation.
        count: Number of samples.
        clusters: Effective number of clusters, (sum m)^2 / sum m^2 for cluster sizes m. Below 1.5 the bounds are NaN.
        alike: Weight of the second variance, in clusters. Chosen by simulation (``docs/intervals.md``).
    """
    if not clusters >= 1.5:
        return math.nan, math.nan
    square_G = np.square(residual_G)
    total = float(square_G.sum())
    effective = clusters
    if total > 1e-24:
        G = len(residual_G)
        told = share * (1 - share) / (G / (G - 1) * total)
        known = total * total / float(np.square(square_G).sum())  # clusters that determine the variance
        effective = min(told, float(count), (known + alike) / (known / told + alike / clusters))
    # Korn & Graubard 1998, section 2: n* = n_eff (t_{n-1} / t_{G-1})^2
    effective *= float(stdtrit(max(count - 1, 1), 0.975) / stdtrit(min(clusters, count) - 1, 0.975)) ** 2
    hits, misses = share * effective, (1 - share) * effective
    low = float(betaincinv(hits, misses + 1, 0.025)) if hits > 1e-9 else 0.0
    high = float(betaincinv(hits + 1, misses, 0.975)) if misses > 1e-9 else 1.0
    return low, high


def difference_bounds(up: float, down: float, bounds_up: Bounds, bounds_down: Bounds, correlation: float) -> Bounds:
    """The 95 % interval of ``up - down``, the shares of samples that rose and fell (Zou & Donner 2008, eq. 4)."""

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(one * one + other * other - 2 * correlation * one * other, 0.0))

    below = reach(up - bounds_up[0], bounds_down[1] - down)
    above = reach(bounds_up[1] - up, down - bounds_down[0])
    return max(up - down - below, -1.0), min(up - down + above, 1.0)


def correlation(one_G: Floats, other_G: Floats) -> float:
    """The correlation of the clusters' contributions to two shares. 0 if one of them does not vary."""
    scale = math.sqrt(float(np.square(one_G).sum() * np.square(other_G).sum()))
    return float((one_G * other_G).sum()) / scale if scale > 0 else 0.0
