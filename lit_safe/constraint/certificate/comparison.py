"""Other one-sided upper bounds of a mean, to compare with betting. A certificate's verdict never uses them.

Letters: n draws in [0, 1].
"""

import math

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit  # type: ignore[import-untyped]

from lit_safe.constraint.certificate.bounded_mean import bets
from lit_safe.constraint.certificate.sample import check_delta

Floats = npt.NDArray[np.float64]

BERNSTEIN_STAKE = 0.5
"""The cap on the bets of the predictable plug-in bound (``c`` in Waudby-Smith & Ramdas 2024, Theorem 2)."""


def empirical_bernstein(unit_n: Floats, delta: float) -> float:
    """Upper bound of the mean: Maurer & Pontil 2009 (arXiv:0907.3740, Theorem 4). 1 with a single draw.

    mean + sqrt(2 V log(2 / delta) / n) + 7 log(2 / delta) / (3 (n - 1)), V the unbiased sample variance.
    """
    check_delta(delta)
    count, needed = len(unit_n), math.log(2 / delta)
    if count < 2:
        return 1.0
    spread = math.sqrt(2 * float(unit_n.var(ddof=1)) * needed / count)
    return min(1.0, float(unit_n.mean()) + spread + 7 * needed / (3 * (count - 1)))


def plug_in_bernstein(unit_n: Floats, delta: float) -> float:
    """Upper bound of the mean: empirical Bernstein with predictable plug-in (Waudby-Smith & Ramdas 2024, Theorem 2).

    (sum lambda_t x_t + log(1 / delta) + sum v_t psi(lambda_t)) / sum lambda_t, with v_t = 4 (x_t - mean_{t-1})^2 and
    psi(lambda) = (-log(1 - lambda) - lambda) / 4. It depends on the order of the draws.
    """
    check_delta(delta)
    before_n = np.concatenate([[0.5], (0.5 + np.cumsum(unit_n)) / (np.arange(1, len(unit_n) + 1) + 1)])[:-1]
    bet_n = np.minimum(bets(unit_n, delta), BERNSTEIN_STAKE)
    psi_n = (-np.log1p(-bet_n) - bet_n) / 4
    reach = math.log(1 / delta) + float((4 * np.square(unit_n - before_n) * psi_n).sum())
    return min(1.0, (float((bet_n * unit_n).sum()) + reach) / float(bet_n.sum()))


def students_t(unit_n: Floats, delta: float) -> float:
    """Upper bound of a normal mean: mean + t_{n-1} s / sqrt(n). NaN with a single draw.

    With skewed costs and few draws it is below the expectation more often than ``delta``.
    """
    check_delta(delta)
    count = len(unit_n)
    if count < 2:
        return math.nan
    return float(unit_n.mean()) + float(stdtrit(count - 1, 1 - delta)) * float(unit_n.std(ddof=1)) / math.sqrt(count)
