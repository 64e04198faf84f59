"""Shares corrected by a judge's measured error: how often it flags people's positives, and people's negatives.

A judge that finds ``hits`` of the positives and flags ``false_alarms`` of the negatives flags, of all responses, the
share ``hits * share + false_alarms * (1 - share)``, where ``share`` is what people would find. Solved for ``share``,
this is the estimate of Rogan & Gladen 1978 (American Journal of Epidemiology 107, 71-76). It holds if the judge errs on
these responses as often as on the labelled ones. ``lit_safe.statistics.human_corrected`` needs no such assumption, but
labels of some of these responses.

An interval has every share that the three intervals do not exclude together: the interval of ``flagged - hits * share -
false_alarms * (1 - share)`` contains 0 there. That interval joins the three by the root of the sum of squares (Zou &
Donner 2008, Statistics in Medicine 27, 1693-1702), so it is valid near 0 and 1 where theirs are.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq  # type: ignore[import-untyped]

from lit_safe.statistics.clustered import Estimate
from lit_safe.statistics.intervals import Bounds


class JudgeError(NamedTuple):
    """A judge's error against people, each rate with its 95 % interval.

    Args:
        hits: Share of people's positives that the judge flags (sensitivity).
        hits_bounds: Its interval.
        positives: Number of labelled positives.
        false_alarms: Share of people's negatives that the judge flags (1 - specificity).
        false_alarms_bounds: Its interval.
        negatives: Number of labelled negatives.
    """

    hits: float
    hits_bounds: Bounds
    positives: int
    false_alarms: float
    false_alarms_bounds: Bounds
    negatives: int

    @property
    def separation(self) -> float:
        """``hits - false_alarms``: 1 for a judge like people, 0 for one that does not look (Youden's index)."""
        return self.hits - self.false_alarms

    @property
    def separation_bounds(self) -> Bounds:
        """Its interval."""
        below = math.hypot(self.hits - self.hits_bounds[0], self.false_alarms_bounds[1] - self.false_alarms)
        above = math.hypot(self.hits_bounds[1] - self.hits, self.false_alarms - self.false_alarms_bounds[0])
        return self.separation - below, self.separation + above

    @property
    def unusable(self) -> str | None:
        """Why no share can be corrected by these rates. None if one can."""
        if self.separation_bounds[0] > 0:
            return None
        return (
            f"the judge flags {self.hits:.3f} of {self.positives} positives and {self.false_alarms:.3f} of "
            f"{self.negatives} negatives: these rates are not told apart, so its shares cannot be corrected"
        )


def corrected_by_error(flagged: Estimate, error: JudgeError) -> Estimate:
    """The share that people would find, in [0, 1], from the share that a judge flags. There is no standard error.

    Args:
        flagged: The flagged share, with its interval.
        error: The judge's rates, measured on other responses than these.

    Raises:
        ValueError: If the judge's rates are not told apart.

    Example:
        >>> error = JudgeError(0.9, (0.9, 0.9), 500, 0.1, (0.1, 0.1), 500)  # rates that are known exactly
        >>> corrected_by_error(Estimate(0.5, 0.05, 100, 100, (0.42, 0.58)), error).mean
        0.5
    """
    _check(error)

    def misses(share: float, side: int) -> float:
        """An end of the interval of ``flagged - hits * share - false_alarms * (1 - share)``."""
        hits, alarms = (rate[1 - side] for rate in (error.hits_bounds, error.false_alarms_bounds))
        parts = (
            flagged.bounds[side] - flagged.mean,
            share * (hits - error.hits),
            (1 - share) * (alarms - error.false_alarms),
        )
        found = flagged.mean - error.hits * share - error.false_alarms * (1 - share)
        return found + (2 * side - 1) * math.hypot(*parts)

    # Rogan & Gladen 1978: (flagged + specificity - 1) / (sensitivity + specificity - 1)
    mean = float(np.clip((flagged.mean - error.false_alarms) / error.separation, 0, 1))
    return flagged._replace(mean=mean, stderr=math.nan, bounds=_ends(misses, 0.0, flagged))


def corrected_difference(difference: Estimate, error: JudgeError) -> Estimate:
    """The difference of two shares that people would find, in [-1, 1], for one judge with the same error on both.

    False alarms cancel: the difference is divided by ``hits - false_alarms``.

    Args:
        difference: The difference of the flagged shares, with its interval.
        error: The judge's rates.

    Raises:
        ValueError: If the judge's rates are not told apart.
    """
    _check(error)
    low, high = error.separation_bounds

    def misses(change: float, side: int) -> float:
        other = high if (side == 0) == (change >= 0) else low
        parts = difference.bounds[side] - difference.mean, change * (other - error.separation)
        return difference.mean - change * error.separation + (2 * side - 1) * math.hypot(*parts)

    mean = float(np.clip(difference.mean / error.separation, -1, 1))
    return difference._replace(mean=mean, stderr=math.nan, bounds=_ends(misses, -1.0, difference))


def _check(error: JudgeError) -> None:
    if error.unusable is not None:
        raise ValueError(error.unusable)


def _ends(misses: Callable[[float, int], float], least: float, of: Estimate) -> Bounds:
    """The values from ``least`` to 1 at which the interval contains 0. Both its ends fall with the value.

    They fall because a rate's interval is shorter than the distance of the two rates, whose own interval excludes 0.
    """
    if any(map(math.isnan, of.bounds)):
        return math.nan, math.nan
    ends = []
    for side in (0, 1):
        first, last = misses(least, side), misses(1.0, side)
        if first <= 0:
            ends.append(least)
        elif last >= 0:
            ends.append(1.0)
        else:
            ends.append(float(brentq(misses, least, 1.0, args=(side,), xtol=1e-12)))
    return ends[0], ends[1]
