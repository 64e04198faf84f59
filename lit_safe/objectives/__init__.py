"""Objectives: pure functions that compute one loss per pair from log-ratios and labels."""

from lit_safe.objectives.constrained_dpo import ConstrainedDPO
from lit_safe.objectives.dpo import DPO
from lit_safe.objectives.sacpo import SACPO
from lit_safe.objectives.safe_dpo import SafeDPO
from lit_safe.objectives.safety_penalty import SafetyPenaltyDPO

__all__ = ["DPO", "SACPO", "ConstrainedDPO", "SafeDPO", "SafetyPenaltyDPO"]
