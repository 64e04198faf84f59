"""Estimates from clustered measurements: means, differences, shares and AUCs, with standard errors and intervals.

Agreement of two judges, and shares corrected by human labels, are among them.
"""

from lit_safe.statistics.agreement import Agreement, agreement
from lit_safe.statistics.clustered import Estimate, clustered_mean, paired_difference
from lit_safe.statistics.human_corrected import corrected_share
from lit_safe.statistics.ranking import clustered_auc

__all__ = [
    "Agreement",
    "Estimate",
    "agreement",
    "clustered_auc",
    "clustered_mean",
    "corrected_share",
    "paired_difference",
]
