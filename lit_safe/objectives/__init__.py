"""Objectives: pure functions that compute one loss per pair from log-ratios and labels."""

from lit_safe.objectives.bfpo import BFPO
from lit_safe.objectives.both_orders import BothOrders
from lit_safe.objectives.constrained_dpo import ConstrainedDPO
from lit_safe.objectives.cpo import CPO
from lit_safe.objectives.dpo import DPO
from lit_safe.objectives.hinge import Hinge
from lit_safe.objectives.ipo import IPO
from lit_safe.objectives.kto import KTO
from lit_safe.objectives.length_normalised_dpo import LengthNormalisedDPO
from lit_safe.objectives.modpo import MODPO
from lit_safe.objectives.orpo import ORPO
from lit_safe.objectives.robust_dpo import RobustDPO
from lit_safe.objectives.sacpo import SACPO
from lit_safe.objectives.safe_daa import SafeDAA
from lit_safe.objectives.safe_dpo import SafeDPO
from lit_safe.objectives.safety_offset import SafetyOffsetDPO
from lit_safe.objectives.safety_penalty import SafetyPenaltyDPO
from lit_safe.objectives.simpo import SimPO

__all__ = [
    "BFPO",
    "CPO",
    "DPO",
    "IPO",
    "KTO",
    "MODPO",
    "ORPO",
    "SACPO",
    "BothOrders",
    "ConstrainedDPO",
    "Hinge",
    "LengthNormalisedDPO",
    "RobustDPO",
    "SafeDAA",
    "SafeDPO",
    "SafetyOffsetDPO",
    "SafetyPenaltyDPO",
    "SimPO",
]
