"""Means, ratios and differences of clustered measurements: pairs of the same prompt are not independent.

Standard errors are cluster-robust (Liang & Zeger 1986, Biometrika 73, 13-22) with the G / (G - 1) correction of
Cameron & Miller 2015 (J. Human Resources 50, 317-372, section II.B). Miller 2024 (arXiv:2411.00640, sections 2.2 and 4)
recommends them for evaluations of language models. Intervals of shares are from ``lit_safe.statistics.intervals``,
intervals of means and ratios from ``lit_safe.statistics.bootstrap``.

Letters: n samples, G clusters.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lit_safe.statistics.bootstrap import FEWEST, Parts, mean_bounds
from lit_safe.statistics.intervals import Bounds, correlation, difference_bounds, share_bounds

Floats = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]

TOO_FEW = "too few prompts to say"


class Estimate(NamedTuple):
    """A mean with its standard error, from ``count`` samples in ``clusters``.

    ``stderr`` is NaN with fewer than two clusters, because the variation between clusters is unknown then. ``mean`` is
    NaN without samples.

    Example:
        >>> difference = Estimate(mean=0.2, stderr=0.05, count=80, clusters=40, bounds=(0.1, 0.3))
        >>> str(difference), difference.verdict
        ('0.200 [0.100, 0.300]', 'higher')
    """

    mean: float
    stderr: float
    count: int  # type: ignore[assignment]  # shadows tuple.count
    clusters: int
    bounds: Bounds = (math.nan, math.nan)

    @property
    def interval(self) -> Bounds:
        """The 95 % interval. NaN if clusters do not vary, or are too few to estimate their variation."""
        return self.bounds

    def __str__(self) -> str:
        """``mean [low, high]`` with three decimals. Unknown values are n/a."""
        mean, low, high = ("n/a" if math.isnan(end) else f"{end:.3f}" for end in (self.mean, *self.interval))
        return f"{mean} [{low}, {high}]"

    @property
    def verdict(self) -> str:
        """The sign of a difference in words, as far as its interval supports it."""
        low, high = self.interval
        if self.clusters < 2 or math.isnan(self.stderr):
            return TOO_FEW
        if self.stderr <= 1e-12 * abs(self.mean) and not (low > 0 or high < 0):  # an exact interval needs no variation
            return "cannot be told"
        if not high > low:
            return TOO_FEW if self.clusters < FEWEST else "cannot be told"
        if low > 0:
            return "higher"
        if high < 0:
            return "lower"
        return "no measurable change"


NOTHING = Estimate(math.nan, math.nan, 0, 0)
"""The estimate without samples."""


def clustered_mean(
    value_n: npt.ArrayLike, cluster_n: npt.ArrayLike, weight_n: npt.ArrayLike | None = None, *, share: bool = False
) -> Estimate:
    """The (weighted) mean of samples with its clustered standard error.

    For a ratio of sums, such as KL over tokens, pass each sample's ratio as value and its denominator as weight. The
    error is then that of the delta method.

    Args:
        value_n: Samples. Those that are NaN or have weight 0 are left out.
        cluster_n: Cluster ids. Samples with the same id may depend on each other in any way.
        weight_n: Weights >= 0, on any scale. All are equal if not given.
        share: Whether the values are in [0, 1] and the interval is that of a share.

    Raises:
        ValueError: If the lengths differ, a weight is negative or NaN, or a share is not in [0, 1].

    Example:
        >>> estimate = clustered_mean([1.0, 1.0, 4.0, 4.0], [0, 0, 1, 1])  # two prompts with two responses each
        >>> estimate.mean, estimate.stderr, estimate.count, estimate.clusters
        (2.5, 1.5, 4, 2)
    """
    value_n, cluster_n, weight_n = _samples(value_n, cluster_n, weight_n)
    known_n = ~np.isnan(value_n) & (weight_n > 0)
    value_n, weight_n = value_n[known_n], weight_n[known_n]
    if not len(value_n):
        return NOTHING
    one = _ratio(value_n, _index(cluster_n[known_n]), weight_n)
    stderr = _stderr(one.residual_G)
    if share:
        if value_n.min() < 0 or value_n.max() > 1:
            raise ValueError(f"a share has values in [0, 1], got {value_n.min()} to {value_n.max()}")
        bounds = share_bounds(one.mean, one.residual_G, len(value_n), effective(one.size_G))
    else:
        scale = float(np.abs(value_n).max())
        bounds = mean_bounds(one.mean, stderr, ((one.deviation_G, one.size_G),), effective(one.size_G), scale)
    return Estimate(one.mean, stderr, len(value_n), len(one.size_G), bounds)


def paired_difference(
    after_n: npt.ArrayLike,
    before_n: npt.ArrayLike,
    cluster_n: npt.ArrayLike,
    after_weight_n: npt.ArrayLike | None = None,
    before_weight_n: npt.ArrayLike | None = None,
    *,
    share: bool = False,
) -> Estimate:
    """The difference of two (weighted) means over the same samples, ``after - before``, with its clustered error.

    Variation that both measurements of a sample share cancels, so the error is usually much smaller than that of two
    separate means.

    Args:
        after_n: Samples. Those that are NaN in one of the two, or have weight 0 in both, are left out of both.
        before_n: The same samples, measured before.
        cluster_n: Cluster ids, one per sample.
        after_weight_n: As in ``clustered_mean``.
        before_weight_n: As in ``clustered_mean``.
        share: Whether both are shares with equal weights and the interval is that of a paired difference of shares.

    Raises:
        ValueError: As in ``clustered_mean``, or if shares have weights.

    Example:
        >>> difference = paired_difference([2.0, 3.0, 5.0, 5.0], [1.0, 2.0, 3.0, 3.0], [0, 0, 1, 1])
        >>> difference.mean, difference.stderr
        (1.5, 0.5)
    """
    if np.shape(after_n) != np.shape(before_n):
        raise ValueError(f"{np.shape(after_n)} samples after, {np.shape(before_n)} before: they cannot be paired")
    if share and not (after_weight_n is None and before_weight_n is None):
        raise ValueError("a paired difference of shares takes no weights")
    after_n, cluster_n, after_weight_n = _samples(after_n, cluster_n, after_weight_n)
    before_n, cluster_n, before_weight_n = _samples(before_n, cluster_n, before_weight_n)
    known_n = ~np.isnan(after_n + before_n) & (after_weight_n + before_weight_n > 0)
    after_n, after_weight_n = after_n[known_n], after_weight_n[known_n]
    before_n, before_weight_n = before_n[known_n], before_weight_n[known_n]
    index_n = _index(cluster_n[known_n])
    if not after_weight_n.any() or not before_weight_n.any():
        return NOTHING
    after, before = _ratio(after_n, index_n, after_weight_n), _ratio(before_n, index_n, before_weight_n)
    difference, stderr = after.mean - before.mean, _stderr(after.residual_G - before.residual_G)
    if share:
        bounds = _paired_share(after_n - before_n, index_n)
    else:
        parts: Parts = ((after.deviation_G, after.size_G), (before.deviation_G, before.size_G))
        if np.array_equal(after_weight_n, before_weight_n):  # then the difference is itself one ratio
            parts = ((after.deviation_G - before.deviation_G, after.size_G),)
        least = min(effective(one.size_G) for one in (after, before))
        scale = float(max(np.abs(after_n).max(), np.abs(before_n).max()))
        bounds = mean_bounds(difference, stderr, parts, least, scale)
    return Estimate(difference, stderr, len(after_n), len(after.size_G), bounds)


def _paired_share(difference_n: Floats, index_n: Int64s) -> Bounds:
    parts, residuals = [], []
    for sign in (1, -1):
        one = _ratio(np.maximum(sign * difference_n, 0), index_n, np.ones_like(difference_n))
        parts.append((one.mean, share_bounds(one.mean, one.residual_G, len(index_n), effective(one.size_G))))
        residuals.append(one.residual_G)
    (up, bounds_up), (down, bounds_down) = parts
    if math.isnan(bounds_up[0]):
        return math.nan, math.nan
    return difference_bounds(up, down, bounds_up, bounds_down, correlation(*residuals))


class _Ratio(NamedTuple):
    """A weighted mean, and each cluster's sums [G] of weighted deviations from it and of weights."""

    mean: float
    deviation_G: Floats
    size_G: Floats

    @property
    def residual_G(self) -> Floats:
        return self.deviation_G / self.size_G.sum()


def _ratio(value_n: Floats, index_n: Int64s, weight_n: Floats) -> _Ratio:
    mean = float((weight_n * value_n).sum() / weight_n.sum())
    deviation_G = np.bincount(index_n, weight_n * (value_n - mean)).astype(np.float64)
    return _Ratio(mean, deviation_G, np.bincount(index_n, weight_n).astype(np.float64))


def effective(size_G: Floats) -> float:
    """Effective number of clusters, for cluster sizes m: (sum m)^2 / sum m^2 (Kish 1965, section 8.2)."""
    return float(size_G.sum() ** 2 / np.square(size_G).sum())


def _samples(
    value_n: npt.ArrayLike, cluster_n: npt.ArrayLike, weight_n: npt.ArrayLike | None
) -> tuple[Floats, npt.NDArray[Any], Floats]:
    value_n, cluster_n = np.asarray(value_n, np.float64), np.asarray(cluster_n)
    weight_n = np.ones_like(value_n) if weight_n is None else np.asarray(weight_n, np.float64)
    if not value_n.shape == cluster_n.shape == weight_n.shape or value_n.ndim != 1:
        raise ValueError(f"shapes {value_n.shape}, {cluster_n.shape}, {weight_n.shape}: [n] expected of each")
    if not (weight_n[~np.isnan(value_n)] >= 0).all():
        raise ValueError("a weight is negative or NaN")
    return value_n, cluster_n, weight_n


def _index(cluster_n: npt.NDArray[Any]) -> Int64s:
    """The clusters as numbers from 0 to G - 1."""
    return np.unique(cluster_n, return_inverse=True)[1].astype(np.int64)


def _stderr(residual_G: Floats) -> float:
    clusters = len(residual_G)
    if clusters < 2:
        return math.nan
    # Cameron & Miller 2015, eq. 11-12 for a regression on a constant: G / (G - 1) * sum_g (sum_{i in g} e_i / n)^2
    return math.sqrt(clusters / (clusters - 1) * float(np.square(residual_G).sum()))
