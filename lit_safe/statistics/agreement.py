"""Agreement of two judges, or of a judge with people: accuracy, kappa, hits, false alarms, and where they differ.

Letters: n responses, G clusters.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit  # type: ignore[import-untyped]

from lit_safe.statistics.clustered import Estimate, clustered_mean, effective

Floats = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Agreement:
    """How far the verdicts of one judge are those of another, which may be people.

    Attributes:
        equal: Share of responses with equal verdicts.
        kappa: Cohen's kappa: 1 for equal verdicts, 0 for what independent judges with the same shares would reach.
            NaN if both give one and the same verdict to all.
        hits: Share of the other's positives that are positive here (sensitivity).
        false_alarms: Share of the other's negatives that are positive here.
        differ: Indices of the responses with different verdicts, among all n.
        unknown: Number of responses without a verdict of one of them. They are left out.

    Example:
        >>> agreement([1, 0, 1, 0], [1, 0, 0, 0], [0, 1, 2, 3]).false_alarms.count
        3
    """

    equal: Estimate
    kappa: Estimate
    hits: Estimate
    false_alarms: Estimate
    differ: Int64s
    unknown: int

    def __str__(self) -> str:
        """One line for a report."""
        return (
            f"equal verdicts {self.equal} on {self.equal.count} responses to {self.equal.clusters} prompts, kappa "
            f"{self.kappa}; finds {self.hits} of the other's positives, false alarms {self.false_alarms}"
        )


def agreement(verdict_n: npt.ArrayLike, other_n: npt.ArrayLike, cluster_n: npt.ArrayLike) -> Agreement:
    """Compare two judges on the same responses. Intervals are clustered by prompt.

    Args:
        verdict_n: Verdicts of the judge, 1 or 0; NaN if it gave none.
        other_n: Verdicts of the other judge, or labels by people.
        cluster_n: Cluster ids.

    Raises:
        ValueError: If the lengths differ, or a verdict is neither 0, 1 nor NaN.

    Example:
        >>> found = agreement([1, 1, 0, 0], [1, 0, 0, 0], [0, 1, 2, 3])
        >>> found.equal.mean, found.kappa.mean, found.differ.tolist()
        (0.75, 0.5, [1])
    """
    one_n, two_n = np.asarray(verdict_n, np.float64), np.asarray(other_n, np.float64)
    cluster_n = np.asarray(cluster_n)
    if not one_n.shape == two_n.shape == cluster_n.shape or one_n.ndim != 1:
        raise ValueError(f"shapes {one_n.shape}, {two_n.shape}, {cluster_n.shape}: [n] expected of each")
    for value_n in (one_n, two_n):
        strange_n = ~(np.isnan(value_n) | (value_n == 0) | (value_n == 1))
        if strange_n.any():
            raise ValueError(f"a verdict is 0, 1 or NaN, got {value_n[strange_n][0]}")
    known_n = ~np.isnan(one_n + two_n)
    one, two, cluster = one_n[known_n], two_n[known_n], cluster_n[known_n]
    return Agreement(
        clustered_mean(one == two, cluster, share=True),
        _kappa(one, two, cluster),
        clustered_mean(one[two == 1], cluster[two == 1], share=True),
        clustered_mean(one[two == 0], cluster[two == 0], share=True),
        np.flatnonzero(known_n & (one_n != two_n)),
        int((~known_n).sum()),
    )


def _kappa(one_n: Floats, two_n: Floats, cluster_n: npt.NDArray[np.generic]) -> Estimate:
    """Cohen 1960 (Educational and Psychological Measurement 20, 37-46), with the error of the delta method.

    For single samples it is that of Fleiss, Cohen & Everitt 1969 (Psychological Bulletin 72, 323-327).
    """
    count, (clusters, index_n) = len(one_n), np.unique(cluster_n, return_inverse=True)
    G = len(clusters)
    nothing = Estimate(math.nan, math.nan, count, G)
    if not count:
        return nothing
    equal_n = (one_n == two_n).astype(np.float64)
    equal, p, q = equal_n.mean(), one_n.mean(), two_n.mean()
    chance = p * q + (1 - p) * (1 - q)
    if chance == 1:
        return nothing
    kappa = float((equal - chance) / (1 - chance))
    # d kappa = d equal / (1 - chance) - (1 - equal) / (1 - chance)^2 d chance
    chance_n = (2 * q - 1) * (one_n - p) + (2 * p - 1) * (two_n - q)
    influence_n = ((equal_n - equal) / (1 - chance) - (1 - equal) / (1 - chance) ** 2 * chance_n) / count
    influence_G = np.bincount(index_n, influence_n)
    if G < 2:
        return nothing._replace(mean=kappa)
    stderr = math.sqrt(G / (G - 1) * float(np.square(influence_G).sum()))
    known = effective(np.bincount(index_n).astype(np.float64))
    if not stderr > 1e-12 or known < 2:  # clusters that do not vary say nothing about their variation
        return Estimate(kappa, stderr, count, G)
    reach = float(stdtrit(known - 1, 0.975)) * stderr
    return Estimate(kappa, stderr, count, G, (max(kappa - reach, -1.0), min(kappa + reach, 1.0)))
