"""An exact test whether two policies differ on the same prompts.

If both policies have the same distribution of responses, they can be exchanged on any prompt without a change of the
distribution. A prompt's difference is then as likely d as -d, whatever the dependence of its responses. The test
compares the sum of the differences with its distribution over all signs (Fisher 1935, The Design of
Experiments). With one response to each prompt it is McNemar's exact test (McNemar 1947, Psychometrika 12, 153-157).

Letters: G prompts.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.stats import binom  # type: ignore[import-untyped]

LEVEL, POWER = 0.05, 0.8
"""Level of the tests in a report, and the power for which a detectable change is stated."""

Floats = npt.NDArray[np.float64]


def sign_flip_p(difference_G: npt.ArrayLike) -> float:
    """The two-sided p-value of the hypothesis that the signs of the differences are fair coins.

    Args:
        difference_G: For each prompt the number of responses that rose minus the number that fell, integers.

    Raises:
        ValueError: If a difference is not an integer.

    Example:
        >>> sign_flip_p([1, 1, 1, 1, 1, 1, 0, 0])  # six prompts changed, all in one direction: 2 * 0.5 ** 6
        0.03125
    """
    given = np.asarray(difference_G, np.float64)
    whole = np.rint(given).astype(np.int64)
    if not np.array_equal(whole, given):
        raise ValueError(f"differences are counts, got {given.tolist()[:5]}")
    sizes, counts = np.unique(np.abs(whole[whole != 0]), return_counts=True)
    below = 0  # the sum is at least -below
    chance = np.ones(1)
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        # the sum of `count` differences of +-size is size * (2 * heads - count)
        one = np.zeros(2 * size * count + 1)
        one[:: 2 * size] = binom.pmf(np.arange(count + 1), count, 0.5)
        chance, below = np.convolve(chance, one), below + size * count
    sums = np.arange(len(chance)) - below
    return min(1.0, float(chance[np.abs(sums) >= abs(int(whole.sum()))].sum()))


def detectable_change(prompts: int, opposite: float = 0.0, level: float = LEVEL, power: float = POWER) -> float | None:
    """The smallest difference of two shares that the test finds with probability ``power``. Computed before a run.

    The share of prompts that change in one direction is ``opposite``, in the other direction ``opposite`` plus the
    difference. Each prompt has one response; more responses to a prompt make the change smaller. Nothing is estimated
    from data: a sample without any change has a variance of 0, which is no power.

    Args:
        prompts: Number of prompts.
        opposite: Share of prompts that change against the difference, in [0, 0.5).
        level: Level of the two-sided test.
        power: Wanted probability of finding the difference.

    Returns:
        The difference, or None if no difference can be found with that probability.

    Raises:
        ValueError: If ``opposite`` is not in [0, 0.5).
    """
    if not 0 <= opposite < 0.5:
        raise ValueError(f"opposite is a share in [0, 0.5), got {opposite}")
    most = 1 - 2 * opposite
    if prompts < 1 or found_with(prompts, opposite, most, level) < power:
        return None
    low, high = 0.0, most
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if found_with(prompts, opposite, middle, level) >= power else (middle, high)
    return high


def found_with(prompts: int, opposite: float, difference: float, level: float = LEVEL) -> float:
    """The power of McNemar's exact test, in the direction of ``difference``. Arguments as in ``detectable_change``."""
    changed = min(2 * opposite + difference, 1.0)
    if changed <= 0:
        return 0.0
    n = np.arange(prompts + 1)
    rejects = binom.sf(_needed(prompts, level) - 1, n, (opposite + difference) / changed)
    return float((binom.pmf(n, prompts, changed) * rejects).sum())


@lru_cache(maxsize=64)
def _needed(most: int, level: float) -> Floats:
    """[most + 1] for n changed prompts: how many must change in one direction. n + 1 if all n are too few."""
    n = np.arange(most + 1)
    # P(X >= k) <= level / 2 for X ~ Binomial(n, 1/2)
    k = n - binom.ppf(level / 2, n, 0.5) + 1
    k = np.where(binom.sf(k - 2, n, 0.5) <= level / 2, k - 1, k)
    found: Floats = np.minimum(np.where(n == 0, 1, k), n + 1).astype(np.float64)
    return found
