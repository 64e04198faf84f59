"""Objectives: pure functions from log-ratios and labels to a loss for each pair."""

from lit_safe.objectives.constrained_dpo import ConstrainedDPO
from lit_safe.objectives.dpo import DPO
from lit_safe.objectives.safe_dpo import SafeDPO

__all__ = ["DPO", "ConstrainedDPO", "SafeDPO"]
