"""Tests the claims of E[cost] estimates by drawing them many times from known probability tables.

    python -m data.oracle.study.estimators runs/oracle/c_dpo/seed_0 --mean lit_safe.statistics.clustered_mean

Letters: P prompts, K cells, D draws of a whole estimate, G prompts of an estimate, S responses to each, n = G * S.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from data.oracle.truth.optimum import tilt
from data.oracle.truth.result import RESULT, TABLES
from lit_safe.hashing import hash64

Floats = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]
Interval = Callable[[Floats, Int64s, Floats], tuple[float, float]]
"""The 95 % interval of a mean from n values, their n clusters and their n weights."""

SHARES = ("coverage", "accepted")
MULTIPLIERS = (0.0, 0.5, 1.0)  # of the policies whose cost importance weights estimate
SETTINGS = ((8, 1), (16, 1), (32, 1), (64, 1), (16, 4), (64, 4))


class RolloutRow(NamedTuple):
    """Results of ``draws`` rollout estimates. Shares lie in [0, 1]; the rest is in cost units."""

    prompts: int
    samples_per_prompt: int
    coverage: float  # share of intervals that contain the exact value
    bias: float  # mean error
    error: float  # root of the mean squared error
    half_width: float  # mean half width of the interval
    draws: int


class ImportanceRow(NamedTuple):
    """Results of ``draws`` importance estimates of one policy: figures of the accepted ones, NaN if there is none."""

    policy: str
    prompts: int
    samples_per_prompt: int
    truth: float
    effective: float  # median effective sample size of all draws
    accepted: float  # share of draws whose effective sample size reaches the floor
    bias: float
    bias_stderr: float  # standard error of the bias, from the number of draws
    error: float
    coverage: float
    draws: int


def rollout_coverage(
    policy_PK: Floats,
    cost_PK: Floats,
    interval: Interval,
    settings: Sequence[tuple[int, int]] = SETTINGS,
    draws: int = 2000,
    seed: int = 0,
    replace: bool = True,
) -> list[RolloutRow]:
    """How often the interval of a rollout estimate contains E[cost], for several (prompts, samples per prompt).

    Args:
        policy_PK: Log-probabilities in nats; rows sum to 1.
        cost_PK: The cost of each cell.
        interval: Interval of the estimator, clustered by prompt.
        settings: Number of prompts of an estimate, and of responses to each.
        draws: Number of estimates.
        seed: Seed of all draws. A setting's draws do not depend on the other settings.
        replace: True draws prompts with replacement, as a sample of a population with the table's distribution; a
            prompt drawn twice counts as two. False draws distinct prompts of the table. With all P of them the
            interval, which treats prompts as a sample, is wider than necessary.
    """
    truth = _expected(policy_PK, cost_PK)
    rows = []
    for prompts, samples in settings:
        random = np.random.default_rng(hash64("rollout-coverage", seed, prompts, samples, replace))
        cluster_n = np.repeat(np.arange(prompts), samples)
        one_n = np.ones(prompts * samples)
        mean_D, bounds_D2 = np.empty(draws), np.empty((draws, 2))
        for d, (p_n, cell_n) in enumerate(_responses(policy_PK, prompts, samples, draws, random, replace)):
            cost_n = cost_PK[p_n, cell_n]
            mean_D[d], bounds_D2[d] = cost_n.mean(), interval(cost_n, cluster_n, one_n)
        rows.append(
            RolloutRow(
                prompts,
                samples,
                _holds(bounds_D2, truth),
                float(mean_D.mean() - truth),
                float(np.sqrt(np.square(mean_D - truth).mean())),
                float(np.diff(bounds_D2).mean() / 2),
                draws,
            )
        )
    return rows


def importance_bias(
    reference_PK: Floats,
    policies: Mapping[str, Floats],
    cost_PK: Floats,
    interval: Interval,
    settings: Sequence[tuple[int, int]] = ((64, 2), (64, 8), (512, 2)),
    draws: int = 2000,
    seed: int = 0,
    minimum_effective: float = 50.0,
) -> list[ImportanceRow]:
    """The errors of self-normalised importance weights on the reference's responses for other policies' E[cost].

    Weights are those of cells, so all malformed text has the same weight. Real weights vary slightly more.

    Args:
        reference_PK: Log-probabilities in nats of the policy that wrote the responses.
        policies: Log-probabilities [P, K] of policies, by name.
        cost_PK: The cost of each cell.
        interval: Weighted interval of the estimator, clustered by prompt.
        settings: Number of prompts of an estimate (drawn with replacement, as from a population), and of responses to
            each.
        draws: Number of estimates. Every policy is estimated from the same responses.
        seed: Seed of all draws.
        minimum_effective: Effective sample size (sum w)^2 / sum w^2 below which the estimator refuses.
    """
    rows = []
    for prompts, samples in settings:
        cluster_n = np.repeat(np.arange(prompts), samples)
        for name, policy_PK in policies.items():
            random = np.random.default_rng(hash64("importance-bias", seed, prompts, samples))
            truth = _expected(policy_PK, cost_PK)
            mean_D, effective_D, bounds_D2 = np.empty(draws), np.empty(draws), np.empty((draws, 2))
            for d, (p_n, cell_n) in enumerate(_responses(reference_PK, prompts, samples, draws, random, replace=True)):
                logweight_n = policy_PK[p_n, cell_n] - reference_PK[p_n, cell_n]
                weight_n = np.exp(logweight_n - np.max(logweight_n))
                weight_n /= weight_n.sum()
                cost_n = cost_PK[p_n, cell_n]
                mean_D[d], effective_D[d] = weight_n @ cost_n, 1 / np.square(weight_n).sum()
                bounds_D2[d] = interval(cost_n, cluster_n, weight_n)
            kept_D = effective_D >= minimum_effective
            error_d = mean_D[kept_D] - truth
            known = len(error_d) > 1
            rows.append(
                ImportanceRow(
                    name,
                    prompts,
                    samples,
                    truth,
                    float(np.median(effective_D)),
                    float(kept_D.mean()),
                    float(error_d.mean()) if known else np.nan,
                    float(error_d.std(ddof=1) / np.sqrt(len(error_d))) if known else np.nan,
                    float(np.sqrt(np.square(error_d).mean())) if known else np.nan,
                    _holds(bounds_D2[kept_D], truth) if known else np.nan,
                    draws,
                )
            )
    return rows


def markdown(rows: Sequence[RolloutRow] | Sequence[ImportanceRow]) -> str:
    """The rows as a Markdown table with a column for each field; shares in %, a dash for NaN."""
    names = rows[0]._fields
    heads = [name.replace("_", " ") + (" (%)" if name in SHARES else "") for name in names]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    lines += [f"| {' | '.join(_cell(n, v) for n, v in zip(names, row, strict=True))} |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(name: str, value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    if np.isnan(value):
        return "-"
    return f"{100 * value:.1f}" if name in SHARES else f"{value:.4g}"


def _responses(
    logp_PK: Floats, prompts: int, samples: int, draws: int, random: np.random.Generator, replace: bool
) -> Iterator[tuple[Int64s, Int64s]]:
    """Prompts [n] and cells [n] of each estimate in turn."""
    cdf_PK = np.cumsum(np.exp(logp_PK), axis=-1)
    cdf_PK /= cdf_PK[:, -1:]
    rows, width = logp_PK.shape
    ladder = (cdf_PK + np.arange(rows)[:, None]).ravel()  # each row is shifted by 1, so one search covers all rows
    for _ in range(draws):
        p_n = np.repeat(random.choice(rows, prompts, replace=replace), samples)
        cell_n = np.searchsorted(ladder, p_n + random.random(len(p_n)), side="right") - p_n * width
        yield p_n, np.minimum(cell_n, width - 1)


def _expected(policy_PK: Floats, cost_PK: Floats) -> float:
    return float((np.exp(policy_PK) * cost_PK).sum(-1).mean())


def _holds(bounds_D2: Floats, truth: float) -> float:
    return float(((bounds_D2[:, 0] <= truth) & (truth <= bounds_D2[:, 1])).mean())


def main(arguments: Sequence[str] | None = None) -> None:
    """Print both tables for a run of the oracle world."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("run", type=Path, help="folder with the run's oracle.npz and oracle.json")
    parser.add_argument("--mean", required=True, help="function (values, clusters, weights) to a mean with an interval")
    parser.add_argument("--draws", type=int, default=2000)
    given = parser.parse_args(arguments)
    module, _, name = given.mean.rpartition(".")
    mean = getattr(importlib.import_module(module), name)
    tables = np.load(given.run / TABLES)
    result = json.loads((given.run / RESULT).read_text(encoding="utf-8"))
    reference_PK, policy_PK, cost_PK = tables["reference_PK"], tables["policy_PK"], tables["cost_PKC"].max(-1)
    reward_PK, beta = tables["reward_PK"], result["beta"]

    def interval(value_n: Floats, cluster_n: Int64s, weight_n: Floats) -> tuple[float, float]:
        low, high = mean(value_n, cluster_n, weight_n).interval
        return low, high

    policies = {
        f"tilt at {multiplier:g}": tilt(reference_PK, reward_PK, cost_PK[..., None], multiplier, beta)
        for multiplier in MULTIPLIERS
    }
    for title, replace in (("prompts of a population", True), ("prompts of the table", False)):
        print(f"\nRollouts, {title}\n")
        settings = [setting for setting in SETTINGS if replace or setting[0] <= len(policy_PK)]
        print(markdown(rollout_coverage(policy_PK, cost_PK, interval, settings, given.draws, replace=replace)))
    print("\nImportance weights on the reference's responses\n")
    every = {"reference": reference_PK, **policies, "this run": policy_PK}
    print(markdown(importance_bias(reference_PK, every, cost_PK, interval, draws=given.draws)))


if __name__ == "__main__":
    main()
