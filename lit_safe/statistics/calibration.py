"""Calibration of scores to log-odds, and how well probabilities agree with labels.

Letters: n samples, G clusters, B bins.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize  # type: ignore[import-untyped]
from scipy.special import expit  # type: ignore[import-untyped]

from lit_safe.hashing import hash64

Floats = npt.NDArray[np.float64]

BINS = 10
RESAMPLES = 1000


def fit_log_odds(column_nF: npt.ArrayLike, positive_n: npt.ArrayLike) -> Floats:
    """Weights [F] of the log-odds ``column_nF @ weight`` that make the labels most likely (logistic regression).

    With the columns (score, 1) these are slope and intercept of Platt's calibration (Platt 1999). As in Platt's paper,
    the targets are (N+ + 1) / (N+ + 2) and 1 / (N- + 2) instead of 1 and 0, so the weights stay finite if the score
    separates the labels.

    Args:
        column_nF: Columns of numbers.
        positive_n: Labels, bool.

    Raises:
        ValueError: If there is only one label, or a number is not finite.
    """
    column = np.asarray(column_nF, np.float64)
    positive = np.asarray(positive_n, bool)
    count, total = int(positive.sum()), len(positive)
    if not 0 < count < total:
        raise ValueError(f"calibration needs positive and negative labels, got {count} and {total - count}")
    if not np.isfinite(column).all():
        raise ValueError("calibration needs finite scores")
    target = np.where(positive, (count + 1) / (count + 2), 1 / (total - count + 2))
    spread = np.sqrt(np.square(column).mean(0)).clip(min=1e-300)
    scaled = column / spread  # the optimizer sees columns of one size

    def loss(weight: Floats) -> tuple[float, Floats]:
        log_odds = scaled @ weight
        nll = np.logaddexp(0, log_odds) - target * log_odds  # -[t log sigma(z) + (1 - t) log sigma(-z)]
        return float(nll.mean()), scaled.T @ (expit(log_odds) - target) / total

    found: Any = minimize(loss, np.zeros(column.shape[1]), jac=True, method="L-BFGS-B", options={"gtol": 1e-12})
    return np.asarray(found.x / spread, np.float64)


def cross_fitted(column_nF: npt.ArrayLike, positive_n: npt.ArrayLike, cluster_n: npt.ArrayLike) -> Floats:
    """Log-odds [n] of each half of the samples, calibrated on the other half. A hash of the cluster chooses the half.

    Measures of calibration computed from them are not flattered by the samples that fitted the calibration.

    Raises:
        ValueError: If a half has only one label.
    """
    column, positive = np.asarray(column_nF, np.float64), np.asarray(positive_n, bool)
    half = np.array([hash64("calibration", int(cluster)) % 2 for cluster in np.asarray(cluster_n)])
    log_odds = np.zeros(len(positive))
    for side in (0, 1):
        log_odds[half == side] = column[half == side] @ fit_log_odds(column[half != side], positive[half != side])
    return log_odds


class Bin(NamedTuple):
    """Samples of similar predicted probability: their number, mean prediction and share of positive labels."""

    count: int  # type: ignore[assignment]  # shadows tuple.count
    predicted: float
    observed: float


@dataclass(frozen=True)
class Reliability:
    """Predicted probabilities against labels.

    Attributes:
        bins: At most ``BINS`` bins of equally many samples, by predicted probability.
        error: Expected calibration error: mean over bins of |predicted - observed|, weighted by their counts.
        low: Lower end of its 95 % interval: a percentile bootstrap over clusters.
        high: Upper end.
        by_chance: The same error of labels drawn from the predictions themselves, on average. It is above 0 even for
            perfect predictions, since bins are finite.
    """

    bins: tuple[Bin, ...]
    error: float
    low: float
    high: float
    by_chance: float


def reliability(
    probability_n: npt.ArrayLike, positive_n: npt.ArrayLike, cluster_n: npt.ArrayLike, seed: int = 0
) -> Reliability:
    """The expected calibration error (Naeini et al. 2015) in bins of equal counts, with its interval by cluster.

    Args:
        probability_n: Predicted probabilities in [0, 1].
        positive_n: Labels, bool.
        cluster_n: Cluster ids (prompts). The bootstrap resamples clusters.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: If there are no samples, or a probability lies outside [0, 1].
    """
    probability, positive = np.asarray(probability_n, np.float64), np.asarray(positive_n, np.float64)
    if not len(probability) or not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError("reliability needs probabilities in [0, 1], at least one")
    order = np.argsort(probability, kind="stable")
    bin_n = np.empty(len(order), np.int64)
    bin_n[order] = np.arange(len(order)) * min(BINS, len(order)) // len(order)
    groups, group_n = np.unique(np.asarray(cluster_n), return_inverse=True)
    random = np.random.default_rng(hash64("reliability", seed))
    sums = [_table(bin_n, group_n, len(groups), values) for values in (np.ones(len(order)), probability, positive)]
    draws = random.multinomial(len(groups), np.full(len(groups), 1 / len(groups)), RESAMPLES).astype(np.float64)
    errors = _error(*(draws @ table for table in sums))
    chance = [
        _error(*(table.sum(0) for table in (*sums[:2], _table(bin_n, group_n, len(groups), drawn))))
        for drawn in (random.random((200, len(order))) < probability).astype(np.float64)
    ]
    count, predicted, observed = (table.sum(0) for table in sums)
    low, high = np.quantile(errors, (0.025, 0.975)).tolist()
    bins = tuple(Bin(int(n), p / n, o / n) for n, p, o in zip(count, predicted, observed, strict=True))
    return Reliability(bins, float(_error(count, predicted, observed)), low, high, float(np.mean(chance)))


def _table(bin_n: npt.NDArray[np.int64], group_n: npt.NDArray[np.int64], groups: int, value_n: Floats) -> Floats:
    """[G, B] sums of values by cluster and bin."""
    table = np.zeros((groups, int(bin_n.max()) + 1))
    np.add.at(table, (group_n, bin_n), value_n)
    return table


def _error(count: Floats, predicted: Floats, observed: Floats) -> Any:
    """Sum over bins of |sum of predictions - sum of labels| / n, over the last axis."""
    return np.abs(predicted - observed).sum(-1) / count.sum(-1).clip(min=1)
