"""Rewards from a preference alone: the data give the order, the user gives the difference in reward."""

import math

from data.schema import Row


def rewards_of_order(row: Row, strength: float | None) -> tuple[float, float]:
    """``+-strength / 2`` nats for the better and the other response; NaN if ``better`` or ``strength`` is None.

    The better response then beats the other with Bradley-Terry probability sigma(strength).
    """
    if row.better is None or strength is None:
        return math.nan, math.nan
    half = strength / 2 if row.better == 0 else -strength / 2
    return half, -half


def check_units(scale: float, strength: float | None) -> None:
    """Raises ValueError unless ``scale`` and ``strength`` are finite and > 0 (``strength`` may be None)."""
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be > 0, got {scale}")
    if strength is not None and not (math.isfinite(strength) and strength > 0):
        raise ValueError(f"preference_strength must be > 0, got {strength}")
