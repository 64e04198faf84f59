"""The dual function of a cost limit on scored samples, and the multiplier that minimises it.

Letters: P prompts, C cost constraints. Multipliers are in nats per cost unit, the dual function in nats of reward.
"""

import numpy as np
from scipy.optimize import brentq, minimize  # type: ignore[import-untyped]

from lit_safe.constraint.reachability.tilt import Floats, Samples, Tilted, tilted

ROOT = 1e-10  # tolerance of a multiplier
MET = 1e-6  # tolerance of a limit, as a share of the costs' standard deviation


def dual_value(estimate: Tilted, multiplier_C: Floats, limit_C: Floats, beta: float) -> float:
    """D = beta E_x log E_ref exp((r - multiplier . (c - limit)) / beta), in nats of reward.

    Huang et al. 2024, arXiv:2405.19544, section 4 (MoCAN), with the utility g = -c and its bound b = -limit.
    """
    return float(beta * estimate.log_z_P.mean() + multiplier_C @ limit_C)


def gap(estimate: Tilted, multiplier_C: Floats, limit_C: Floats) -> float:
    """D minus the tilted policy's E[r] - beta KL: multiplier . (limit - E[c]). 0 at the minimum of D, in nats."""
    return float(multiplier_C @ (limit_C - estimate.cost_PC.mean(0)))


def solve(samples: Samples, limit_C: Floats, beta: float, maximum_C: Floats) -> Floats:
    """[C] multipliers in [0, maximum_C] that minimise the dual function. Its gradient is limit - E[c].

    A multiplier of 0 means that its limit does not bind. At its maximum, E[c] may still exceed the limit.

    Raises:
        RuntimeError: If the minimum was not found, which happens if few samples have all the weight.
    """

    def excess(multiplier_C: Floats) -> Floats:
        return np.asarray(tilted(samples, multiplier_C, beta).cost_PC.mean(0) - limit_C)

    if len(limit_C) == 1:
        if excess(np.zeros(1))[0] <= 0:
            return np.zeros(1)
        if excess(maximum_C)[0] >= 0:
            return maximum_C.copy()
        return np.array([brentq(lambda one: excess(np.array([one]))[0], 0.0, maximum_C[0], xtol=ROOT)])
    scale_C = np.maximum(samples.cost_PKC.std((0, 1)), np.finfo(np.float64).tiny)  # costs of different units

    def dual(scaled_C: Floats) -> tuple[float, Floats]:
        multiplier_C = scaled_C / scale_C
        estimate = tilted(samples, multiplier_C, beta)
        value = dual_value(estimate, multiplier_C, limit_C, beta)
        return value, (limit_C - estimate.cost_PC.mean(0)) / scale_C

    bounds = [(0.0, most) for most in maximum_C * scale_C]
    options = {"ftol": 0.0, "gtol": MET / 1000, "maxiter": 10_000}
    found = minimize(dual, np.zeros(len(limit_C)), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    multiplier_C = np.clip(found.x / scale_C, 0.0, maximum_C)
    off_C = excess(multiplier_C) / scale_C
    over_C, under_C = off_C > MET, off_C < -MET
    wrong_C = (over_C & (multiplier_C < maximum_C)) | (under_C & (multiplier_C > 0))
    if wrong_C.any():
        raise RuntimeError(f"the dual's minimum was not found: at multipliers {multiplier_C} E[c] is off by {off_C}")
    return multiplier_C


def solution_stderr(estimate: Tilted, multiplier_C: Floats, maximum_C: Floats) -> Floats:
    """[C] standard errors of the multipliers of ``solve``, clustered by prompt. NaN at 0 and at a maximum.

    The delta method: the multipliers inside solve E[c] = limit, so their error is that of E[c] divided by its slope.
    """
    stderr_C = np.full(len(multiplier_C), np.nan)
    inside = np.flatnonzero((multiplier_C > 0) & (multiplier_C < maximum_C))
    if not len(inside):
        return stderr_C
    slope = estimate.slope_PCC.mean(0)[np.ix_(inside, inside)]
    cost_Pc = estimate.cost_PC[:, inside]
    covariance = np.atleast_2d(np.cov(cost_Pc, rowvar=False)) / len(cost_Pc)
    if np.linalg.cond(slope) > 1e12:
        return stderr_C
    inverse = np.linalg.inv(slope)
    stderr_C[inside] = np.sqrt(np.diag(inverse @ covariance @ inverse.T))
    return stderr_C
