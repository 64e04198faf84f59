"""Estimates of the policy pi_ref exp((r - multiplier . c) / beta) / Z from scored samples of pi_ref, in float64.

Letters: P prompts, K samples of the reference to each, C cost constraints, G groups of samples. Rewards are in nats of
Bradley-Terry, a multiplier in nats per cost unit, KL in nats. A cost > 0 is unsafe.

The policy is the optimum of C-DPO's Lagrangian (Liu, Sun & Zheng 2024, arXiv:2403.02475, eq. 11). Its expectations are
estimated by self-normalised importance sampling within each prompt (Owen 2013, Monte Carlo theory, section 9.2).
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp  # type: ignore[import-untyped]

Floats = npt.NDArray[np.float64]

GROUPS = 8
"""Groups of samples that the jackknife leaves out in turn."""


class Samples(NamedTuple):
    """Rewards [P, K] and costs [P, K, C] of K samples of the reference to each of P prompts. See ``scored_samples``."""

    reward_PK: Floats
    cost_PKC: Floats

    @property
    def prompts(self) -> int:
        """P."""
        return len(self.reward_PK)

    @property
    def per_prompt(self) -> int:
        """K."""
        return self.reward_PK.shape[1]

    def of_prompts(self, rows: slice | npt.NDArray[np.int64]) -> "Samples":
        """The samples of some prompts."""
        return Samples(self.reward_PK[rows], self.cost_PKC[rows])

    def without(self, columns: npt.NDArray[np.int64]) -> "Samples":
        """The samples but for those of some numbers, the same for each prompt."""
        return Samples(np.delete(self.reward_PK, columns, 1), np.delete(self.cost_PKC, columns, 1))

    @property
    def smallest_cost_C(self) -> Floats:
        """[C] means over prompts of the least cost among a prompt's samples. No weights on these samples give less."""
        return np.asarray(self.cost_PKC.min(1).mean(0))


def scored_samples(reward_PK: npt.ArrayLike | None, cost: npt.ArrayLike) -> Samples:
    """Checked samples.

    Args:
        reward_PK: Rewards. With None, all are 0.
        cost: Costs [P, K] or [P, K, C].

    Raises:
        ValueError: If shapes differ, a score is not finite, or there are fewer than two prompts or samples of each.
    """
    cost = np.asarray(cost, np.float64)
    cost_PKC = cost[..., None] if cost.ndim == 2 else cost
    reward_PK = np.zeros(cost.shape[:2]) if reward_PK is None else np.asarray(reward_PK, np.float64)
    if cost_PKC.ndim != 3 or reward_PK.shape != cost_PKC.shape[:2]:
        raise ValueError(f"rewards {reward_PK.shape} and costs {cost.shape}: [P, K] and [P, K] or [P, K, C] expected")
    if min(reward_PK.shape) < 2:
        raise ValueError(f"an estimate needs at least 2 prompts and 2 samples of each, got {reward_PK.shape}")
    for name, score in (("reward", reward_PK), ("cost", cost_PKC)):
        if not np.isfinite(score).all():
            prompt, sample = np.argwhere(~np.isfinite(score))[0][:2]
            raise ValueError(f"the {name} of sample {sample} of prompt {prompt} is not finite")
    return Samples(reward_PK, cost_PKC)


class Tilted(NamedTuple):
    """Estimates for the tilted policy, one row per prompt.

    ``slope_PCC`` is the derivative of the cost by the multiplier, -Cov(c) / beta. ``kl_P`` is from the reference.
    ``log_z_P`` is log E_ref exp((r - multiplier . c) / beta).
    """

    cost_PC: Floats
    reward_P: Floats
    kl_P: Floats
    log_z_P: Floats
    slope_PCC: Floats


def logweights(samples: Samples, multiplier_C: Floats, beta: float) -> Floats:
    """[P, K] logs of the normalised weights of each prompt's samples."""
    logit_PK = (samples.reward_PK - samples.cost_PKC @ multiplier_C) / beta
    return np.asarray(logit_PK - logsumexp(logit_PK, axis=1, keepdims=True))


def effective_size(samples: Samples, multiplier_C: Floats, beta: float) -> Floats:
    """[P] effective sample sizes 1 / sum of squared weights, from 1 to K (Kong 1992)."""
    return np.asarray(np.exp(-logsumexp(2 * logweights(samples, multiplier_C, beta), axis=1)))


def plain(samples: Samples, multiplier_C: Floats, beta: float) -> Tilted:
    """Self-normalised estimates. Their bias is of order 1 / K and the same for any number of prompts."""
    logit_PK = (samples.reward_PK - samples.cost_PKC @ multiplier_C) / beta
    total_P1 = logsumexp(logit_PK, axis=1, keepdims=True)
    weight_PK = np.exp(logit_PK - total_P1)
    log_z_P = total_P1[:, 0] - np.log(samples.per_prompt)
    cost_PC = np.einsum("pk,pkc->pc", weight_PK, samples.cost_PKC)
    off_PKC = samples.cost_PKC - cost_PC[:, None]
    # the derivative of E[c] by the multiplier is -Cov(c) / beta: the log of the density moves by -c / beta
    slope_PCC = -np.einsum("pk,pkc,pkd->pcd", weight_PK, off_PKC, off_PKC) / beta
    return Tilted(
        cost_PC,
        (weight_PK * samples.reward_PK).sum(1),
        (weight_PK * logit_PK).sum(1) - log_z_P,  # E[log(pi / pi_ref)]
        log_z_P,
        slope_PCC,
    )


def tilted(samples: Samples, multiplier_C: Floats, beta: float) -> Tilted:
    """The estimates of ``plain`` without their bias of order 1 / K (jackknife; Efron & Tibshirani 1993, ch. 10).

    A group of m samples is left out in turn. (K T - (K - m) T_without) / m has no bias of order 1 / K; the mean over
    groups is the estimate.
    """
    whole, k = plain(samples, multiplier_C, beta), samples.per_prompt
    groups = np.array_split(np.arange(k), min(GROUPS, k))
    found = [np.zeros_like(value) for value in whole]
    for group in groups:
        part = plain(samples.without(group), multiplier_C, beta)
        for total, value, reduced in zip(found, whole, part, strict=True):
            total += (k * value - (k - len(group)) * reduced) / (len(group) * len(groups))
    return Tilted(*found)
