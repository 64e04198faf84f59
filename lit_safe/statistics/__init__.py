"""Estimates from clustered measurements: means, differences, shares and AUCs, with standard errors and intervals."""

from lit_safe.statistics.clustered import Estimate, clustered_mean, paired_difference
from lit_safe.statistics.ranking import clustered_auc

__all__ = ["Estimate", "clustered_auc", "clustered_mean", "paired_difference"]
