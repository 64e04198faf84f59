"""Means, ratios and differences of measurements that come in clusters: two pairs of one prompt are not independent.

The errors are the cluster-robust ones of Liang & Zeger 1986 (Biometrika 73, 13-22) with the G / (G - 1) correction of
Cameron & Miller 2015 (J. Human Resources 50, 317-372, section II.B), which evaluations of language models need as much
(Miller 2024, arXiv:2411.00640, sections 2.2 and 4). With few prompts they are still a little too small; the interval
takes Student's t with G - 1 degrees of freedom to make up for most of that.

Letters: n samples, G clusters.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit  # type: ignore[import-untyped]

from lit_safe.intervals import Bounds, correlation, difference_bounds, share_bounds

Floats = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]


class Estimate(NamedTuple):
    """A mean with its standard error, from ``count`` samples in ``clusters``.

    ``stderr`` is NaN with fewer than two clusters, which say nothing of how clusters differ; ``mean`` of nothing.
    """

    mean: float
    stderr: float
    count: int  # type: ignore[assignment]  # shadows tuple.count
    clusters: int
    bounds: Bounds | None = None
    """The 95 % interval where it is not Student's: that of a share."""

    @property
    def interval(self) -> Bounds:
        """The 95 % interval; NaN where clusters do not vary, or are too few to say how they do."""
        if self.bounds is not None:
            return self.bounds
        if math.isnan(self.stderr) or self.stderr <= 1e-12 * abs(self.mean):
            return math.nan, math.nan
        reach = float(stdtrit(self.clusters - 1, 0.975)) * self.stderr
        return self.mean - reach, self.mean + reach

    @property
    def verdict(self) -> str:
        """Of a difference, in words that claim no more than its interval does."""
        low, high = self.interval
        if self.clusters < 2 or math.isnan(self.stderr):
            return "too few prompts to say"
        if self.stderr <= 1e-12 * abs(self.mean) or not high > low:
            return "cannot be told"
        if low > 0:
            return "higher"
        if high < 0:
            return "lower"
        return "no measurable change"


def clustered_mean(
    value_n: npt.ArrayLike, cluster_n: npt.ArrayLike, weight_n: npt.ArrayLike | None = None, *, share: bool = False
) -> Estimate:
    """The (weighted) mean of samples with its standard error, clustered.

    A ratio of sums, such as KL over tokens, is the mean of the samples' own ratios weighted by their denominators; its
    error is then the delta method's.

    Args:
        value_n: Samples; those that are NaN are left out.
        cluster_n: Ids; samples of one id may depend on each other in any way.
        weight_n: >= 0, of any scale; equal where absent.
        share: The values lie in [0, 1]; the interval is that of a share.

    Raises:
        ValueError: If the lengths differ, a weight is negative or NaN, or a share is not in [0, 1].
    """
    value_n, cluster_n, weight_n = _clean(value_n, cluster_n, weight_n)
    mean, residual_G, count = _influence(value_n, cluster_n, weight_n)
    stderr = _stderr(residual_G)
    bounds = None
    if share and count:
        if value_n.min() < 0 or value_n.max() > 1:
            raise ValueError(f"a share has values in [0, 1], got {value_n.min()} to {value_n.max()}")
        bounds = share_bounds(mean, _square(stderr), count, _effective(cluster_n, weight_n))
    elif count:
        bounds = _uneven(mean, stderr, len(residual_G), _effective(cluster_n, weight_n))
    return Estimate(mean, stderr, count, len(residual_G), bounds)


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

    What a sample adds to both means cancels, so that the error is usually far below that of two separate means.

    Args:
        after_n: Samples; those that are NaN on either side are left out of both.
        before_n: The same samples, measured the other way.
        cluster_n: Ids, one for each sample.
        after_weight_n: As in ``clustered_mean``.
        before_weight_n: As in ``clustered_mean``.
        share: Both are shares of equal weights; the interval is that of a paired difference of shares.

    Raises:
        ValueError: As in ``clustered_mean``, or if shares have weights.
    """
    after_n, before_n = np.asarray(after_n, np.float64), np.asarray(before_n, np.float64)
    if after_n.shape != before_n.shape:
        raise ValueError(f"{after_n.shape} samples after, {before_n.shape} before: they cannot be paired")
    both_n = after_n + before_n
    after = _influence(*_clean(np.where(np.isnan(both_n), np.nan, after_n), cluster_n, after_weight_n))
    before = _influence(*_clean(np.where(np.isnan(both_n), np.nan, before_n), cluster_n, before_weight_n))
    if not after[2] or not before[2]:
        return Estimate(math.nan, math.nan, 0, 0)
    bounds = None
    if share:
        if after_weight_n is not None or before_weight_n is not None:
            raise ValueError("a paired difference of shares takes no weights")
        bounds = _paired_share(after_n - before_n, cluster_n)
    return Estimate(after[0] - before[0], _stderr(after[1] - before[1]), after[2], len(after[1]), bounds)


def _paired_share(difference_n: Floats, cluster_n: npt.ArrayLike) -> Bounds:
    parts, residuals = [], []
    for sign in (1, -1):
        value_n, index_n, weight_n = _clean(np.maximum(sign * difference_n, 0), cluster_n, None)
        mean, residual_G, count = _influence(value_n, index_n, weight_n)
        bounds = share_bounds(mean, _square(_stderr(residual_G)), count, _effective(index_n, weight_n))
        parts.append((mean, bounds))
        residuals.append(residual_G)
    (up, bounds_up), (down, bounds_down) = parts
    if math.isnan(bounds_up[0]):
        return math.nan, math.nan
    return difference_bounds(up, down, bounds_up, bounds_down, correlation(*residuals))


def _effective(cluster_n: Int64s, weight_n: Floats) -> float:
    """Clusters of one size that tell as much (Kish 1965, section 8.2): (sum m)^2 / sum m^2."""
    size_G = np.bincount(cluster_n, weight_n)
    return float(size_G.sum() ** 2 / np.square(size_G).sum())


def _uneven(mean: float, stderr: float, clusters: int, effective: float) -> Bounds | None:
    """Clusters of unequal size: Student's t with the degrees of freedom of as many equal ones as tell as much."""
    if clusters < 2 or effective > clusters - 1e-6 or stderr <= 1e-12 * abs(mean):
        return None
    reach = float(stdtrit(max(effective - 1, 1.0), 0.975)) * stderr
    return mean - reach, mean + reach


def _square(value: float) -> float:
    return value * value if value > 1e-12 else 0.0


def _clean(
    value_n: npt.ArrayLike, cluster_n: npt.ArrayLike, weight_n: npt.ArrayLike | None
) -> tuple[Floats, Int64s, Floats]:
    value_n, cluster_n = np.asarray(value_n, np.float64), np.asarray(cluster_n)
    weight_n = np.ones_like(value_n) if weight_n is None else np.asarray(weight_n, np.float64)
    if not value_n.shape == cluster_n.shape == weight_n.shape or value_n.ndim != 1:
        raise ValueError(f"shapes {value_n.shape}, {cluster_n.shape}, {weight_n.shape}: [n] expected of each")
    known_n = ~np.isnan(value_n)
    if not (weight_n[known_n] >= 0).all():
        raise ValueError("a weight is negative or NaN")
    index_n = np.unique(cluster_n[known_n], return_inverse=True)[1].astype(np.int64)
    return value_n[known_n], index_n, weight_n[known_n]


def _influence(value_n: Floats, cluster_n: Int64s, weight_n: Floats) -> tuple[float, Floats, int]:
    """The mean, what each cluster adds to its deviation [G], and n."""
    total = weight_n.sum()
    if len(value_n) == 0 or total == 0:
        return math.nan, np.zeros(0), 0
    mean = float((weight_n * value_n).sum() / total)
    residual_G = np.bincount(cluster_n, weight_n * (value_n - mean) / total)
    return mean, residual_G.astype(np.float64), len(value_n)


def _stderr(residual_G: Floats) -> float:
    clusters = len(residual_G)
    if clusters < 2:
        return math.nan
    # Cameron & Miller 2015, eq. 11-12 for a regression on a constant: G / (G - 1) * sum_g (sum_{i in g} e_i / n)^2
    return math.sqrt(clusters / (clusters - 1) * float(np.square(residual_G).sum()))
