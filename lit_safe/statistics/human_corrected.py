"""The share that people would find, from a judge's verdicts on all responses and human labels of some.

Prediction-powered inference: Angelopoulos, Bates, Fannjiang, Jordan & Zrnic 2023 (Science 382, 669-674;
arXiv:2301.09633). ``lit_safe.constraint.certificate.powered`` has bounds for independent responses that hold for every
number of labels; the interval here is for clusters, and needs tens of labelled prompts.

The intervals of the flagged share and of the judge's error are exact ones, so a judge that erred on none of the
labelled responses is not taken for one that never errs. They are joined by the root of the sum of squares (Zou & Donner
2008, Statistics in Medicine 27, 1693-1702).

Letters: n responses.
"""

import math

import numpy as np
import numpy.typing as npt

from lit_safe.statistics.clustered import NOTHING, Estimate, clustered_mean, paired_difference
from lit_safe.statistics.intervals import Bounds

Floats = npt.NDArray[np.float64]

FEWEST_LABELS = 20
"""With fewer labelled clusters there is no interval: the error of the judge is hardly known."""


def corrected_share(verdict_n: npt.ArrayLike, label_n: npt.ArrayLike, cluster_n: npt.ArrayLike) -> Estimate:
    """``mean of all verdicts - mean of (verdict - label) over labelled responses``, in [0, 1].

    It is unbiased for every judge if the labelled responses were chosen at random. A better judge gives a shorter
    interval. The error is clustered, and the dependence of the two means is part of it.

    Args:
        verdict_n: Verdicts of the judge, 1 or 0. Responses with NaN are left out.
        label_n: Labels by people, 1 or 0; NaN where there is none.
        cluster_n: Cluster ids.

    Raises:
        ValueError: If the lengths differ, there is no label, or a value is neither 0, 1 nor NaN.

    Example:
        >>> corrected_share([1, 1, 1, 0], [1, 0, float("nan"), float("nan")], [0, 1, 2, 3]).mean
        0.25
    """
    verdict, label, cluster = _checked(verdict_n, label_n, cluster_n)
    flagged, error = clustered_mean(verdict, cluster, share=True), _error(verdict, label, cluster)
    if not error.count:
        raise ValueError("no judged response has a label by people: a share cannot be corrected")
    # Angelopoulos et al. 2023, the prediction-powered mean, as the difference of two means of the same clusters
    error_n, labelled_n = _errors(verdict, label)
    found = paired_difference(verdict, error_n, cluster, np.ones_like(verdict), labelled_n)
    low, high = (min(max(end, 0.0), 1.0) for end in _less(flagged, error, found.stderr))
    if error.clusters < FEWEST_LABELS:
        low = high = math.nan
    return found._replace(mean=float(np.clip(found.mean, 0, 1)), bounds=(low, high))


def corrected_change(
    after_n: npt.ArrayLike,
    before_n: npt.ArrayLike,
    after_label_n: npt.ArrayLike,
    before_label_n: npt.ArrayLike,
    cluster_n: npt.ArrayLike,
) -> Estimate:
    """The difference of two corrected shares of paired responses, ``after - before``, in [-1, 1].

    Verdicts are paired by response, errors by prompt. The dependence of verdicts and errors is left out, which makes
    the interval somewhat too long if most responses have labels.

    Args:
        after_n: Verdicts, 1 or 0. Responses without both verdicts (NaN) are left out.
        before_n: Verdicts on the responses that they are paired with.
        after_label_n: Labels by people, 1 or 0; NaN where there is none.
        before_label_n: Labels of the other responses. They need not be of the same pairs.
        cluster_n: Cluster ids.

    Returns:
        The estimate; that without samples if one side has no label, or labels of fewer than ``FEWEST_LABELS`` clusters.

    Raises:
        ValueError: As in ``corrected_share``, except for missing labels.
    """
    after, after_label, cluster = _checked(after_n, after_label_n, cluster_n)
    before, before_label, _ = _checked(before_n, before_label_n, cluster_n)
    both_n = ~np.isnan(after + before)
    after, before, cluster = after[both_n], before[both_n], cluster[both_n]
    sides = (after, after_label[both_n]), (before, before_label[both_n])
    one, other = (_error(verdict, label, cluster) for verdict, label in sides)
    if min(one.clusters, other.clusters) < FEWEST_LABELS:
        return NOTHING
    (one_n, one_labelled_n), (other_n, other_labelled_n) = (_errors(*side) for side in sides)
    errors = paired_difference(one_n, other_n, cluster, one_labelled_n, other_labelled_n)
    error = errors._replace(bounds=_less(one, other, errors.stderr))
    flagged = paired_difference(after, before, cluster, share=True)
    stderr = math.hypot(flagged.stderr, error.stderr)
    low, high = (min(max(end, -1.0), 1.0) for end in _less(flagged, error, stderr))
    return flagged._replace(mean=float(np.clip(flagged.mean - error.mean, -1, 1)), stderr=stderr, bounds=(low, high))


def _less(one: Estimate, other: Estimate, stderr: float) -> Bounds:
    """The interval of ``one - other``, whose standard error gives their correlation (Zou & Donner 2008)."""
    both = one.stderr * other.stderr
    alike = (one.stderr**2 + other.stderr**2 - stderr**2) / (2 * both) if both > 0 else 0.0
    alike = min(max(alike, -1.0), 1.0)

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(a * a + b * b - 2 * alike * a * b, 0.0))

    (one_low, one_high), (low, high) = one.bounds, other.bounds
    mean = one.mean - other.mean
    return mean - reach(one.mean - one_low, high - other.mean), mean + reach(one_high - one.mean, other.mean - low)


def _error(verdict_n: Floats, label_n: Floats, cluster_n: npt.NDArray[np.generic]) -> Estimate:
    """The mean of verdict minus label over labelled responses."""
    return paired_difference(verdict_n, label_n, cluster_n, share=True)


def _errors(verdict_n: Floats, label_n: Floats) -> tuple[Floats, Floats]:
    """Verdict minus label of each response, 0 where there is none, and whether it has one."""
    labelled_n = ~np.isnan(label_n + verdict_n)
    return np.where(labelled_n, verdict_n - label_n, 0.0), labelled_n.astype(np.float64)


def _checked(
    verdict_n: npt.ArrayLike, label_n: npt.ArrayLike, cluster_n: npt.ArrayLike
) -> tuple[Floats, Floats, npt.NDArray[np.generic]]:
    verdict, label, cluster = np.asarray(verdict_n, np.float64), np.asarray(label_n, np.float64), np.asarray(cluster_n)
    for value_n in (verdict, label):
        strange_n = ~(np.isnan(value_n) | (value_n == 0) | (value_n == 1))
        if strange_n.any():
            raise ValueError(f"verdicts and labels are 0, 1 or NaN, got {value_n[strange_n][0]}")
    if not verdict.shape == label.shape == cluster.shape:
        raise ValueError(f"shapes {verdict.shape}, {label.shape}, {cluster.shape}: [n] expected of each")
    return verdict, label, cluster
