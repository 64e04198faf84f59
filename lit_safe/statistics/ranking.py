"""The area under the ROC curve (AUC) with a clustered standard error.

Letters: n samples, P positive ones, N negative ones, G clusters.
"""

import math

import numpy as np
import numpy.typing as npt

from lit_safe.statistics.clustered import Estimate, effective
from lit_safe.statistics.intervals import share_bounds


def clustered_auc(score_n: npt.ArrayLike, positive_n: npt.ArrayLike, cluster_n: npt.ArrayLike) -> Estimate:
    """AUC: the probability that a positive sample scores above a negative one (ties count 0.5), with clustered error.

    The error is that of DeLong et al. 1988 (Biometrics 44, 837-845) with placements summed within clusters, as in
    Obuchowski 1997 (Biometrics 53, 567-578), with one G / (G - 1) correction. The interval is that of a share with this
    error, so it has a width greater than 0 even if the AUC is 0 or 1.

    Args:
        score_n: Scores on any scale.
        positive_n: Whether each sample is positive, bool.
        cluster_n: Cluster ids. Samples with the same id may depend on each other in any way.

    Returns:
        The estimate; NaN if there are no positive or no negative samples.

    Raises:
        ValueError: If the lengths differ or a score is NaN.

    Example:
        >>> clustered_auc([0.1, 0.4, 0.35, 0.8], [False, False, True, True], [0, 1, 2, 3]).mean  # 3 of 4 comparisons
        0.75
    """
    score_n, positive_n = np.asarray(score_n, np.float64), np.asarray(positive_n, bool)
    cluster_n = np.asarray(cluster_n)
    if not score_n.shape == positive_n.shape == cluster_n.shape or score_n.ndim != 1:
        raise ValueError(f"shapes {score_n.shape}, {positive_n.shape}, {cluster_n.shape}: [n] expected of each")
    if np.isnan(score_n).any():
        raise ValueError("a score is NaN")
    groups, group_n = np.unique(cluster_n, return_inverse=True)
    above_P = _placement(score_n[positive_n], score_n[~positive_n])
    below_N = 1 - _placement(score_n[~positive_n], score_n[positive_n])
    if not len(above_P) or not len(below_N):
        return Estimate(math.nan, math.nan, len(score_n), len(groups))
    auc = float(above_P.mean())
    influence_n = np.zeros(len(score_n))
    influence_n[positive_n] = (above_P - auc) / len(above_P)
    influence_n[~positive_n] = (below_N - auc) / len(below_N)
    residual_G = np.bincount(group_n, influence_n, len(groups)).astype(np.float64)
    G = len(groups)
    stderr = math.sqrt(G / (G - 1) * float(np.square(residual_G).sum())) if G > 1 else math.nan
    sizes = (np.bincount(group_n, one_n).astype(np.float64) for one_n in (positive_n, ~positive_n))
    bounds = share_bounds(auc, residual_G, len(score_n), min(map(effective, sizes)), alike=0)
    return Estimate(auc, stderr, len(score_n), G, bounds)


def _placement(score: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The share of ``others`` below each score; ties count 0.5. NaN if there are no others."""
    ranked = np.sort(others)
    below = np.searchsorted(ranked, score, "left") + np.searchsorted(ranked, score, "right")
    return below / (2 * len(ranked)) if len(ranked) else np.zeros(0)
