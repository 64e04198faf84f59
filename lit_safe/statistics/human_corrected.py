"""The share that people would find, from a judge's verdicts on all responses and human labels of some.

Prediction-powered inference: Angelopoulos, Bates, Fannjiang, Jordan & Zrnic 2023 (Science 382, 669-674;
arXiv:2301.09633). ``lit_safe.constraint.certificate.powered`` has bounds for independent responses that hold for every
number of labels; the interval here is for clusters, and needs tens of labelled prompts.

Letters: n responses.
"""

import numpy as np
import numpy.typing as npt

from lit_safe.statistics.clustered import Estimate, paired_difference

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
    verdict_n, label_n = np.asarray(verdict_n, np.float64), np.asarray(label_n, np.float64)
    cluster_n = np.asarray(cluster_n)
    for value_n in (verdict_n, label_n):
        strange_n = ~(np.isnan(value_n) | (value_n == 0) | (value_n == 1))
        if strange_n.any():
            raise ValueError(f"verdicts and labels are 0, 1 or NaN, got {value_n[strange_n][0]}")
    if not verdict_n.shape == label_n.shape == cluster_n.shape:
        raise ValueError(f"shapes {verdict_n.shape}, {label_n.shape}, {cluster_n.shape}: [n] expected of each")
    labelled_n = ~np.isnan(label_n + verdict_n)
    if not labelled_n.any():
        raise ValueError("no judged response has a label by people: a share cannot be corrected")
    # Angelopoulos et al. 2023, the prediction-powered mean, as the difference of two means of the same clusters
    error_n = np.where(labelled_n, verdict_n - label_n, 0.0)
    found = paired_difference(verdict_n, error_n, cluster_n, np.ones_like(verdict_n), labelled_n.astype(np.float64))
    low, high = (float(np.clip(end, 0, 1)) for end in found.bounds)
    if len(np.unique(cluster_n[labelled_n])) < FEWEST_LABELS:
        low = high = float("nan")
    return found._replace(mean=float(np.clip(found.mean, 0, 1)), bounds=(low, high))
