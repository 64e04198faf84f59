"""Means over seeds and prompts together: a run varies with its seed, and a mean with the prompts that were asked.

Letters: S seeds, P prompts.
"""

import bisect
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student  # type: ignore[import-untyped]

Floats = npt.NDArray[np.float64]

LEVEL = 0.95
MOST = 1_000_000  # seeds or prompts of a plan


class Pooled(NamedTuple):
    """A mean over seeds and prompts with its 95 % interval.

    ``of_seeds`` and ``of_prompts`` are the parts of the variance of the mean; the former is NaN with one seed, and the
    interval then says nothing about other seeds. An interval is NaN where nothing varies that could have.
    """

    mean: float
    stderr: float
    low: float
    high: float
    seeds: int
    prompts: int
    of_seeds: float
    of_prompts: float

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def text(self, scale: float = 1.0, digits: int = 2, *, signed: bool = False) -> str:
        """``mean [low, high]``, each times ``scale``; n/a for what is not known."""
        sign = "+" if signed else ""
        mean, low, high = (
            f"{scale * value:{sign}.{digits}f}" if math.isfinite(value) else "n/a"
            for value in (self.mean, self.low, self.high)
        )
        return f"{mean} [{low}, {high}]"

    def within(self, low: float, high: float) -> "Pooled":
        """The same with its interval cut to values that are possible, such as those of a share."""
        return self._replace(low=max(self.low, low), high=min(self.high, high)) if self.known else self

    def enough(self) -> tuple[int | None, int | None]:
        """So many prompts, or so many seeds, would tell a mean of this size from 0, if the variances stay as they are.

        None: no number of these would, nothing is known of it, or the mean is 0.
        """
        of_seeds = 0.0 if math.isnan(self.of_seeds) else self.of_seeds * self.seeds
        of_prompts = 0.0 if math.isnan(self.of_prompts) else self.of_prompts * self.prompts

        def tells(seeds: int, prompts: int) -> bool:
            return _square(of_seeds / seeds, seeds) + _square(of_prompts / prompts, prompts) < self.mean**2

        prompts = _least(lambda n: tells(self.seeds, n)) if of_prompts else None
        return prompts, _least(lambda n: tells(n, self.prompts)) if of_seeds else None


def _square(variance: float, n: int) -> float:
    """The square of half of Student's interval of a mean of ``n`` values, by the variance of this mean."""
    return 0.0 if variance == 0 else variance * float(student.ppf(0.5 + LEVEL / 2, n - 1)) ** 2


def _least(holds: Callable[[int], bool]) -> int | None:
    """The least number >= 2 from which on something holds, None if it does not at ``MOST``."""
    return bisect.bisect_left(range(MOST), True, lo=2, key=holds) if holds(MOST) else None


def over_seeds(value_SP: npt.ArrayLike) -> Pooled:
    """The mean of values of each seed at each prompt, where both seeds and prompts are samples.

    The variance of the mean is that of seeds' means, divided by S, plus that of prompts' means, divided by P. What
    varies with seed and prompt together is in both parts, so the sum is somewhat too large. Each part has Student's
    interval with its own degrees of freedom, and half the interval of the mean is the root of the sum of their squares,
    as for a sum of independent estimates (Zou & Donner 2008, Statistics in Medicine 27, 1693-1702). With two seeds
    that differ it is therefore wide.

    Args:
        value_SP: The values [S, P], complete.

    Raises:
        ValueError: If there is no value, or one is not finite.

    Example:
        >>> found = over_seeds([[1.0, 3.0, 2.0, 2.0], [1.0, 3.0, 2.0, 2.0]])  # both seeds agree
        >>> found.mean, round(found.stderr, 4), found.of_seeds
        (2.0, 0.4082, 0.0)
    """
    value = np.asarray(value_SP, np.float64)
    if value.ndim != 2 or not value.size:
        raise ValueError(f"values of seeds and prompts have a shape [S, P], got {list(value.shape)}")
    if not np.isfinite(value).all():
        raise ValueError("a value of a seed at a prompt is missing or not finite")
    seeds, prompts = value.shape
    of_seeds = float(value.mean(1).var(ddof=1)) / seeds if seeds > 1 else math.nan
    of_prompts = float(value.mean(0).var(ddof=1)) / prompts if prompts > 1 else math.nan
    parts = [(part, n) for part, n in ((of_seeds, seeds), (of_prompts, prompts)) if not math.isnan(part)]
    mean, variance = float(value.mean()), sum(part for part, _ in parts)
    if not parts or (variance == 0 and mean == 0):
        return Pooled(mean, math.nan, math.nan, math.nan, seeds, prompts, of_seeds, of_prompts)
    half = math.sqrt(sum(_square(part, n) for part, n in parts))
    return Pooled(mean, math.sqrt(variance), mean - half, mean + half, seeds, prompts, of_seeds, of_prompts)
