"""Bounds of the mean of bounded draws by betting: Waudby-Smith & Ramdas 2024 (J. R. Stat. Soc. B 86, 1-27).

The preprint is arXiv:2010.09686. A bettor pays for each draw at the price ``m``. If the expectation is on the wrong
side of ``m``, the capital is a nonnegative supermartingale that starts at 1, and it reaches 1 / delta with probability
at most delta (Ville 1939). A mean at which the capital has reached 1 / delta is therefore excluded.

Letters: n draws.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from lit_safe.constraint.certificate.sample import check_delta

Floats = npt.NDArray[np.float64]

STAKE = 0.75
"""Largest part of the capital that one draw can cost (``c`` in the paper's Theorem 3, which recommends 1/2 or 3/4)."""

HALVINGS = 60


@dataclass(frozen=True, eq=False)
class BoundedMean:
    """Independent draws in a declared range. A ``Sample`` with betting bounds of its mean.

    The bounds hold for every sample size and every distribution in the range. They depend on the order of the draws, so
    the order must be chosen without knowledge of the values, e.g. by a hash of the prompts.

    Args:
        value_n: The draws, in order.
        low: The smallest possible value, in the units of the draws.
        high: The largest possible value.
        design: The level at which the bets are best. Every level is valid.

    Raises:
        ValueError: If there are no draws, the range is empty, or a draw is not in it.
    """

    value_n: Floats
    low: float
    high: float
    design: float = 0.05

    def __post_init__(self) -> None:
        check_delta(self.design)
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"the range [{self.low}, {self.high}] is not two finite numbers in order")
        if len(self.value_n) < 1:
            raise ValueError("a mean needs at least one draw")
        outside_n = ~((self.value_n >= self.low) & (self.value_n <= self.high))
        if outside_n.any():
            first = int(outside_n.argmax())
            raise ValueError(
                f"{outside_n.sum()} of {len(outside_n)} values are outside the range [{self.low}, {self.high}], the "
                f"first is {self.value_n[first]} (number {first + 1})"
            )

    @property
    def count(self) -> int:
        """Number of draws."""
        return len(self.value_n)

    @property
    def mean(self) -> float:
        """The sample's mean."""
        return float(self.value_n.mean())

    def lower(self, delta: float) -> float:
        """The largest excluded mean below the sample's, up to rounding."""
        check_delta(delta)
        return self.low + (self.high - self.low) * self._excluded("lower", -math.log(delta))

    def upper(self, delta: float) -> float:
        """The smallest excluded mean above the sample's, up to rounding."""
        check_delta(delta)
        return self.low + (self.high - self.low) * self._excluded("upper", -math.log(delta))

    def p_above(self, limit: float) -> float:
        """1 / the largest capital of a bet that the mean is at most ``limit``."""
        return self._p("upper", limit)

    def p_within(self, limit: float) -> float:
        """1 / the largest capital of a bet that the mean is above ``limit``."""
        return self._p("lower", limit)

    def repeated(self, count: int) -> "BoundedMean":
        """``count`` draws: these, again and again in their order."""
        return BoundedMean(np.resize(self.value_n, count), self.low, self.high, self.design)

    @cached_property
    def _unit_n(self) -> Floats:
        return np.clip((self.value_n - self.low) / (self.high - self.low), 0.0, 1.0)

    @cached_property
    def _bet_n(self) -> Floats:
        return bets(self._unit_n, self.design)

    def _p(self, side: Literal["lower", "upper"], limit: float) -> float:
        unit = (limit - self.low) / (self.high - self.low)
        if unit >= 1 or unit < 0:
            return float((unit < 0) == (side == "upper"))  # every mean in the range is on one side of the limit
        mean = float(self._unit_n.mean())
        if unit < mean if side == "upper" else unit > mean:
            return 1.0  # draws that drift may win a bet beyond their own mean; bounds stop there, and so do p-values
        return min(1.0, math.exp(-best_log_capital(self._unit_n, self._bet_n, unit, side)))

    def _excluded(self, side: Literal["lower", "upper"], needed: float) -> float:
        """The excluded mean next to the sample's, in [0, 1]. The capital grows with the distance (bisection)."""
        kept, excluded = float(self._unit_n.mean()), 1.0 if side == "upper" else 0.0
        for _ in range(HALVINGS):
            middle = (kept + excluded) / 2
            if 0 < middle < 1 and best_log_capital(self._unit_n, self._bet_n, middle, side) >= needed:
                excluded = middle
            else:
                kept = middle
        return excluded


def bets(unit_n: Floats, delta: float) -> Floats:
    """[n] the bet on each draw in [0, 1], computed from the draws before it (predictable plug-in).

    lambda_t = sqrt(2 log(1 / delta) / (n s_{t-1}^2)): the bets that Waudby-Smith & Ramdas 2024 recommend with Theorem 3
    for a fixed n, with 1 / delta instead of 2 / delta, because the bound is one-sided. The variance s_t^2 and the mean
    are shrunk towards those of one imagined draw, 1/4 and 1/2.
    """
    draw_n = np.arange(1, len(unit_n) + 1)
    mean_n = (0.5 + np.cumsum(unit_n)) / (draw_n + 1)
    variance_n = (0.25 + np.cumsum(np.square(unit_n - mean_n))) / (draw_n + 1)
    before_n = np.concatenate([[0.25], variance_n[:-1]])
    bet_n: Floats = np.sqrt(-2 * math.log(delta) / (len(unit_n) * before_n))
    return bet_n


def best_log_capital(unit_n: Floats, bet_n: Floats, mean: float, side: Literal["lower", "upper"]) -> float:
    """The largest log-capital over time of one side of the hedged capital (Waudby-Smith & Ramdas 2024, Theorem 3).

    K_t^+(m) = prod (1 + lambda_i (x_i - m)) with lambda_i <= c / m bets that the expectation is above m (side lower);
    K_t^-(m) = prod (1 - lambda_i (x_i - m)) with lambda_i <= c / (1 - m) bets that it is below (side upper).

    Args:
        unit_n: Draws in [0, 1].
        bet_n: Bets before the cap, >= 0.
        mean: The price m, in [0, 1].
        side: Which bound the bet is for.
    """
    at_stake = mean if side == "lower" else 1 - mean
    capped_n = np.minimum(bet_n, STAKE / at_stake) if at_stake > 0 else bet_n
    gain_n = unit_n - mean if side == "lower" else mean - unit_n
    return max(0.0, float(np.cumsum(np.log1p(capped_n * gain_n)).max()))
