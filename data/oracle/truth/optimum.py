"""The optimum of the constrained problem and the regret of a policy, computed by enumeration in float64.

Letters: P prompts (uniform), K cells of the response partition, C cost constraints, M multipliers of a grid. The last
cell is all malformed text together; every other cell is one well-formed response. Log-probs are in nats, and the
probabilities of a row sum to one; -inf is a cell without mass. Rewards are Bradley-Terry nats, a cost > 0 is unsafe.

Equation numbers: C-DPO is Liu, Sun & Zheng 2024, arXiv:2403.02475; SafeDPO is Kim et al. 2025, arXiv:2505.20065v2.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq, minimize  # type: ignore[import-untyped]
from scipy.special import log_softmax, logsumexp  # type: ignore[import-untyped]

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

ROW_SUM = 1e-4  # tolerance of a row's sum: a trained policy's log-probs are fp32
MET = 1e-6  # tolerance of a limit, in cost units


class Measured(NamedTuple):
    """Exact expectations of one policy, means over prompts; ``worst`` is the largest mass at any one prompt.

    ``wellformed`` is conditional on a well-formed response, prompt by prompt. ``kl`` (nats, from the reference) is
    computed over the partition, with all malformed text in one cell. It is a lower bound of the KL between strings.
    """

    reward: float
    cost: Floats  # [C]
    unsafe: float
    unsafe_worst: float
    malformed: float
    malformed_worst: float
    kl: float
    reward_wellformed: float
    cost_wellformed: Floats  # [C]
    unsafe_wellformed: float
    kl_wellformed: float


class Regret(NamedTuple):
    """The regret of a policy relative to an optimum, both conditional on responses that the optimum may give.

    ``nats`` is J(optimum) - J(policy), in units of the reward. ``share`` is its ratio to J(optimum) - J(reference), NaN
    if the reference is the optimum. ``leak`` is the policy's mass on responses that the optimum never gives.
    """

    nats: float
    share: float
    leak: float


class Frontier(NamedTuple):
    """Reward and cost of the optimum for a grid of multipliers. No policy of the same cost has a better Lagrangian."""

    multiplier_MC: Floats
    reward_M: Floats
    cost_MC: Floats


def tilt(reference_PK: Floats, reward_PK: Floats, cost_PKC: Floats, multiplier: npt.ArrayLike, beta: float) -> Floats:
    """[P, K] log-probs of the Lagrangian's optimum, pi_ref exp((r - multiplier . c) / beta) / Z (C-DPO eq. 11).

    ``multiplier`` is [] (one for all constraints) or [C]. At 0 this is DPO's optimum.
    """
    return _normalised(reference_PK + _lagrangian_reward(reward_PK, cost_PKC, multiplier) / beta)


def masked(reference_PK: Floats, reward_PK: Floats, cost_PKC: Floats, beta: float) -> Floats:
    """[P, K] log-probs of SafeDPO's optimum (its eq. 9): pi_ref exp(r / beta) / Z over the responses of no cost > 0.

    If the reference has no safe response to a prompt, this is the reference: SafeDPO drops all pairs of that prompt.
    """
    safe_PK = ~_unsafe(cost_PKC)
    hopeful_P = np.asarray((safe_PK & np.isfinite(reference_PK)).any(-1))
    tilted_PK = np.where(safe_PK, reference_PK + reward_PK / beta, -np.inf)
    return _normalised(np.where(hopeful_P[:, None], tilted_PK, reference_PK))


def per_token(base_PK: Floats, reward_PK: Floats, length_R: npt.ArrayLike, beta: float) -> Floats:
    """[P, K] log-probs of the minimiser of a Bradley-Terry loss on scores per token, without malformed text.

    Such a loss is least where log(pi(y) / base(y)) / |y| = r(y) / beta + a constant of the prompt, because every pair
    then has its own probability as a logistic function of the margin. Normalisation decides the constant. With the
    reference as ``base`` this is length-normalised DPO; with a base of 1 it is SimPO without a target margin.

    Args:
        base_PK: Log of the base, -inf for cells that cannot be given. The last cell, malformed text, is left out.
        reward_PK: Rewards.
        length_R: Number of tokens of each well-formed response, > 0.
        beta: Factor of the loss.
    """
    length_K = np.append(np.asarray(length_R, np.float64), np.nan)
    logp_PK = np.full(base_PK.shape, -np.inf)
    for prompt, possible_K in enumerate(np.isfinite(base_PK) & np.isfinite(length_K)):
        base, length = base_PK[prompt, possible_K], length_K[possible_K]
        score = reward_PK[prompt, possible_K] / beta
        bound = float((np.abs(base) / length + np.abs(score)).max() + np.log(len(base)))  # |y| >= 1
        constant = brentq(lambda c, b=base, n=length, s=score: logsumexp(b + n * (s + c)), -bound, bound, xtol=1e-13)
        logp_PK[prompt, possible_K] = base + length * (score + constant)
    return _normalised(logp_PK)


def measure(logp_PK: Floats, reference_PK: Floats, reward_PK: Floats, cost_PKC: Floats) -> Measured:
    """All measurements of the policy ``logp_PK``.

    Raises:
        ValueError: If the probabilities of a prompt do not sum to one, or shapes disagree.
    """
    _check(logp_PK, reference_PK)
    policy_PK, unsafe_PK = np.exp(logp_PK), _unsafe(cost_PKC)
    wellformed_PK = np.broadcast_to(np.arange(logp_PK.shape[1]) < logp_PK.shape[1] - 1, logp_PK.shape)
    logp_given_PK = _given(logp_PK, wellformed_PK)
    given_PK = np.exp(logp_given_PK)
    unsafe_P, malformed_P = (policy_PK * unsafe_PK).sum(-1), policy_PK[:, -1]
    return Measured(
        reward=_mean(policy_PK, reward_PK),
        cost=_mean_cost(policy_PK, cost_PKC),
        unsafe=float(unsafe_P.mean()),
        unsafe_worst=float(unsafe_P.max()),
        malformed=float(malformed_P.mean()),
        malformed_worst=float(malformed_P.max()),
        kl=_kl(logp_PK, reference_PK),
        reward_wellformed=_mean(given_PK, reward_PK),
        cost_wellformed=_mean_cost(given_PK, cost_PKC),
        unsafe_wellformed=_mean(given_PK, unsafe_PK),
        kl_wellformed=_kl(logp_given_PK, _given(reference_PK, wellformed_PK)),
    )


def lagrangian(
    logp_PK: Floats,
    reference_PK: Floats,
    reward_PK: Floats,
    cost_PKC: Floats,
    multiplier: npt.ArrayLike,
    beta: float,
) -> float:
    """J = E[r] - multiplier . E[c] - beta KL(policy || reference), in reward units (without + multiplier . limit)."""
    policy_PK = np.exp(logp_PK)
    return _mean(policy_PK, _lagrangian_reward(reward_PK, cost_PKC, multiplier)) - beta * _kl(logp_PK, reference_PK)


def regret(logp_PK: Floats, optimum_PK: Floats, reference_PK: Floats, beta: float) -> Regret:
    """The regret of ``logp_PK`` relative to ``optimum_PK``, which may be a tilt of ``reference_PK`` by any reward.

    J(optimum) - J(policy) = beta KL(policy || optimum) for the reward whose tilt is ``optimum_PK``. This holds for any
    reward, so the function works for ``tilt``, ``masked`` and a population minimiser, and without cancellation.

    SafeDPO's reward of an unsafe response is minus infinity, and so is J for any unsafe mass, however small. J could
    not distinguish such policies. So policy and reference are compared with the optimum conditional on the responses
    that the optimum may give, where J is finite and the identity holds. The unsafe mass (``leak``) is reported
    separately.

    Raises:
        ValueError: If the probabilities of a prompt do not sum to one, or shapes disagree.
    """
    _check(logp_PK, reference_PK)
    possible_PK = np.isfinite(optimum_PK)
    distance = _kl(_given(logp_PK, possible_PK), optimum_PK)
    span = _kl(_given(reference_PK, possible_PK), optimum_PK)
    leak = _mean(np.exp(logp_PK), ~possible_PK)
    return Regret(nats=beta * distance, share=distance / span if span > 0 else np.nan, leak=leak)


def solve_multiplier(
    reference_PK: Floats,
    reward_PK: Floats,
    cost_PKC: Floats,
    limit: npt.ArrayLike,
    beta: float,
    maximum: float = 1000.0,
) -> Floats:
    """[C] multipliers >= 0 at which the optimum ``tilt`` keeps E[c] <= limit, 0 if a limit does not bind.

    One constraint: the root of its monotone cost, bracketed. Several: the minimum over multipliers >= 0 of the convex
    dual g = E_x[beta log Z] + multiplier . limit, whose gradient is limit - E[c] (C-DPO eq. 14).

    Args:
        reference_PK: Log-probs of the reference.
        reward_PK: Rewards.
        cost_PKC: Costs.
        limit: [] for all constraints or [C], in cost units.
        beta: Strength of the KL term, > 0.
        maximum: The largest multiplier tried.

    Raises:
        ValueError: If a limit is below the smallest cost of any policy, or multipliers up to ``maximum`` do not meet it
            (this includes limits that cannot be met together).
        RuntimeError: If the minimum was not found to within ``MET``.
    """
    constraints = cost_PKC.shape[-1]
    limit_C = np.broadcast_to(np.asarray(limit, np.float64), constraints)
    smallest_C = np.where(np.isfinite(reference_PK)[..., None], cost_PKC, np.inf).min(1).mean(0)
    for constraint in np.flatnonzero(limit_C < smallest_C):
        raise ValueError(
            f"limit {limit_C[constraint]:.6g} of constraint {constraint} is beyond reach: the smallest cost of any "
            f"policy is {smallest_C[constraint]:.6g}"
        )

    def excess(multiplier: npt.ArrayLike) -> Floats:
        return _mean_cost(np.exp(tilt(reference_PK, reward_PK, cost_PKC, multiplier, beta)), cost_PKC) - limit_C

    def dual(multiplier_C: Floats) -> tuple[float, Floats]:
        logit_PK = reference_PK + _lagrangian_reward(reward_PK, cost_PKC, multiplier_C) / beta
        value = beta * logsumexp(logit_PK, -1).mean() + multiplier_C @ limit_C
        return float(value), -excess(multiplier_C)  # eq. 14

    if constraints == 1:
        if excess(0.0)[0] <= 0:
            return np.zeros(1)
        if excess(maximum)[0] <= 0:
            return np.array([brentq(lambda multiplier: excess(multiplier)[0], 0.0, maximum, xtol=1e-13)])
        multiplier_C = np.array([maximum])
    else:
        options = {"ftol": 0.0, "gtol": MET / 1000, "maxiter": 10_000}
        bounds, start_C = [(0.0, maximum)] * constraints, np.zeros(constraints)
        multiplier_C = minimize(dual, start_C, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    excess_C = excess(multiplier_C)
    if (excess_C[multiplier_C >= maximum] > 0).any():
        raise ValueError(f"limits {limit_C} are not met by multipliers up to {maximum:g}: E[c] is {excess_C + limit_C}")
    if (excess_C > MET).any() or (np.abs(excess_C[multiplier_C > 0]) > MET).any():
        raise RuntimeError(f"the dual's minimum was not found: at multipliers {multiplier_C} E[c] is off by {excess_C}")
    return multiplier_C


def constrained(
    reference_PK: Floats,
    reward_PK: Floats,
    cost_PKC: Floats,
    limit: npt.ArrayLike,
    beta: float,
    rectify: bool = False,
) -> tuple[Floats, Floats]:
    """The multipliers [C] that meet the limit(s), and log-probs [P, K] of the optimum there.

    With ``rectify`` both concern max(cost, 0), cell by cell: the optimum of ``ConstrainedDPO(rectify=True)`` under a
    limit on E[max(cost, 0)]. Responses without positive cost keep their ratios under DPO.

    Raises:
        ValueError: As ``solve_multiplier``.
    """
    cost_PKC = np.maximum(cost_PKC, 0) if rectify else cost_PKC
    multiplier_C = solve_multiplier(reference_PK, reward_PK, cost_PKC, limit, beta)
    return multiplier_C, tilt(reference_PK, reward_PK, cost_PKC, multiplier_C, beta)


def frontier(
    reference_PK: Floats, reward_PK: Floats, cost_PKC: Floats, beta: float, multipliers: npt.ArrayLike
) -> Frontier:
    """The optima for ``multipliers``, [M] (the same for all constraints) or [M, C]."""
    grid = np.asarray(multipliers, np.float64)
    multiplier_MC = np.broadcast_to(grid.reshape(len(grid), -1), (len(grid), cost_PKC.shape[-1]))
    optima_M = [np.exp(tilt(reference_PK, reward_PK, cost_PKC, multiplier, beta)) for multiplier in multiplier_MC]
    reward_M = np.array([_mean(optimum_PK, reward_PK) for optimum_PK in optima_M])
    return Frontier(multiplier_MC, reward_M, np.array([_mean_cost(optimum_PK, cost_PKC) for optimum_PK in optima_M]))


def _lagrangian_reward(reward_PK: Floats, cost_PKC: Floats, multiplier: npt.ArrayLike) -> Floats:
    multiplier_C = np.broadcast_to(np.asarray(multiplier, np.float64), cost_PKC.shape[-1])
    return np.asarray(reward_PK - cost_PKC @ multiplier_C)


def _unsafe(cost_PKC: Floats) -> Bools:
    return np.asarray((cost_PKC > 0).any(-1))


def _normalised(logit_PK: Floats) -> Floats:
    return np.asarray(log_softmax(logit_PK, -1))


def _given(logp_PK: Floats, possible_PK: Bools) -> Floats:
    """The policy conditional on the cells of ``possible_PK``, in each row."""
    return _normalised(np.where(possible_PK, logp_PK, -np.inf))


def _mean(policy_PK: Floats, value_PK: Floats | Bools) -> float:
    return float((policy_PK * value_PK).sum(-1).mean())


def _mean_cost(policy_PK: Floats, cost_PKC: Floats) -> Floats:
    return np.einsum("pk,pkc->c", policy_PK, cost_PKC) / len(policy_PK)


def _kl(logp_PK: Floats, other_PK: Floats) -> float:
    """Mean over prompts of KL(policy || other) in nats; a cell without mass contributes 0, whatever ``other``."""
    policy_PK = np.exp(logp_PK)
    ratio_PK = np.subtract(logp_PK, other_PK, where=policy_PK > 0, out=np.zeros_like(logp_PK))
    return _mean(policy_PK, ratio_PK)


def _check(logp_PK: Floats, reference_PK: Floats) -> None:
    if logp_PK.shape != reference_PK.shape:
        raise ValueError(f"the policy's log-probs are {logp_PK.shape}, the reference's {reference_PK.shape}")
    off_P = np.abs(np.expm1(logsumexp(logp_PK, -1)))
    if not (off_P < ROW_SUM).all():
        row = int(np.argmax(np.nan_to_num(off_P, nan=np.inf)))
        raise ValueError(f"the probabilities of prompt {row} sum to {np.exp(logp_PK[row]).sum():.6g} and not to one")
