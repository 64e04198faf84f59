"""Which multiplier meets a limit, and which cost each multiplier gives, estimated from scored samples of the reference.

Letters: P prompts, K samples of each, C cost constraints.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from lit_safe.constraint.reachability.dual import dual_value, gap, solution_stderr, solve
from lit_safe.constraint.reachability.tilt import Floats, Samples, effective_size, tilted

Verdict = Literal["does not bind", "reached", "not reached"]

ONE_SIDED = 1.645  # standard errors of a one-sided 95 % bound
SHARES = tuple(2.0**-k for k in range(6, 0, -1))  # of the largest multiplier
FEW = 5.0
"""Median effective sample size per prompt below which an estimate is called unreliable (docs/constraints.md)."""


class Point(NamedTuple):
    """The tilted policy at one multiplier [C]: E[c] and its standard error [C] in cost units, E[r] and KL in nats.

    Standard errors are clustered by prompt. ``effective_least`` and ``effective_median`` are over prompts, from 1 to K.
    ``dual`` is the dual function. ``gap`` is the dual function minus E[r] - beta KL.
    """

    multiplier: tuple[float, ...]
    cost: tuple[float, ...]
    stderr: tuple[float, ...]
    reward: float
    kl: float
    kl_stderr: float
    effective_least: float
    effective_median: float
    dual: float
    gap: float


class Reach(NamedTuple):
    """The result of ``reach``.

    Attributes:
        names: The C constraints.
        limit: Their limits, in cost units.
        beta: Of the objective.
        maximum: The largest multiplier of each.
        prompts: P.
        per_prompt: K.
        optimum: The policy at the multipliers that minimise the dual function between 0 and ``maximum``.
        multiplier_stderr: Standard errors of these multipliers; NaN at 0 and at the maximum.
        halves: The multipliers from every second prompt, and from the others.
        half_regret: How much the multipliers of one half lose on the other half, in nats of reward; the mean of both.
        smallest: [C] The least cost that any weights on these samples give.
        grid: The policy at several shares of ``maximum``, from 0 to 1.
    """

    names: tuple[str, ...]
    limit: tuple[float, ...]
    beta: float
    maximum: tuple[float, ...]
    prompts: int
    per_prompt: int
    optimum: Point
    multiplier_stderr: tuple[float, ...]
    halves: tuple[tuple[float, ...], tuple[float, ...]]
    half_regret: float
    smallest: tuple[float, ...]
    grid: tuple[Point, ...]

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """For each constraint: is its limit met without a multiplier, with one up to the maximum, or not."""
        columns = zip(self.optimum.multiplier, self.maximum, self.optimum.cost, self.limit, strict=True)
        return tuple(
            "does not bind" if multiplier <= 0 else
            "not reached" if multiplier >= maximum and cost > limit else "reached"
            for multiplier, maximum, cost, limit in columns
        )  # fmt: skip

    @property
    def clear(self) -> tuple[bool, ...]:
        """For each constraint, whether E[c] and the limit differ by more than the error. True for a limit reached."""
        columns = zip(self.verdicts, self.optimum.cost, self.optimum.stderr, self.limit, strict=True)
        return tuple(v == "reached" or abs(cost - limit) > ONE_SIDED * error for v, cost, error, limit in columns)

    @property
    def reliable(self) -> bool:
        """Whether the weights at the optimum are spread over enough samples."""
        return self.optimum.effective_median >= FEW

    @property
    def reachable(self) -> bool:
        """Whether no limit is found out of reach."""
        return "not reached" not in self.verdicts

    @property
    def limit_in_reach(self) -> tuple[float, ...]:
        """[C] one-sided 95 % upper bounds on E[c] at the optimum: the limits that it meets."""
        return tuple(c + ONE_SIDED * e for c, e in zip(self.optimum.cost, self.optimum.stderr, strict=True))


def reach(
    samples: Samples,
    names: Sequence[str],
    limit: Sequence[float],
    beta: float,
    maximum: Sequence[float],
    shares: Sequence[float] = SHARES,
) -> Reach:
    """Estimate E[c] of the objective's optimum for multipliers up to ``maximum``, and the one that meets each limit.

    Args:
        samples: Scored samples of the reference.
        names: The C constraints.
        limit: One limit for each.
        beta: Of the objective, > 0.
        maximum: The largest multiplier of each, > 0.
        shares: Of the maximum, in (0, 1): the grid between 0 and 1.

    Raises:
        ValueError: If the numbers of constraints differ, or ``beta`` or ``maximum`` is not positive.
        RuntimeError: If the dual's minimum was not found.
    """
    limit_C, maximum_C = np.asarray(limit, np.float64), np.asarray(maximum, np.float64)
    if not len(names) == len(limit_C) == len(maximum_C) == samples.cost_PKC.shape[-1]:
        raise ValueError(
            f"{len(names)} names, {len(limit_C)} limits, costs of {samples.cost_PKC.shape[-1]} constraints"
        )
    if not (beta > 0 and (maximum_C > 0).all()):
        raise ValueError(f"beta and maximum must be > 0, got {beta} and {maximum}")
    optimum_C = solve(samples, limit_C, beta, maximum_C)
    halves, half_regret = _halves(samples, limit_C, beta, maximum_C)
    return Reach(
        tuple(names),
        tuple(limit_C.tolist()),
        beta,
        tuple(maximum_C.tolist()),
        samples.prompts,
        samples.per_prompt,
        point(samples, optimum_C, limit_C, beta),
        tuple(solution_stderr(tilted(samples, optimum_C, beta), optimum_C, maximum_C).tolist()),
        halves,
        half_regret,
        tuple(samples.smallest_cost_C.tolist()),
        tuple(point(samples, share * maximum_C, limit_C, beta) for share in (0.0, *sorted(shares), 1.0)),
    )


def point(samples: Samples, multiplier_C: Floats, limit_C: Floats, beta: float) -> Point:
    """The tilted policy at one multiplier [C]."""
    estimate = tilted(samples, multiplier_C, beta)
    size_P = effective_size(samples, multiplier_C, beta)
    return Point(
        tuple(multiplier_C.tolist()),
        tuple(estimate.cost_PC.mean(0).tolist()),
        tuple(_stderr(estimate.cost_PC).tolist()),
        float(estimate.reward_P.mean()),
        float(estimate.kl_P.mean()),
        float(_stderr(estimate.kl_P)),
        float(size_P.min()),
        float(np.median(size_P)),
        dual_value(estimate, multiplier_C, limit_C, beta),
        gap(estimate, multiplier_C, limit_C),
    )


def _stderr(value: Floats) -> Floats:
    """Standard error of the mean over prompts, of values [P] or [P, C]. All samples of a prompt are one cluster."""
    return np.asarray(value.std(0, ddof=1) / np.sqrt(len(value)))


def _halves(
    samples: Samples, limit_C: Floats, beta: float, maximum_C: Floats
) -> tuple[tuple[tuple[float, ...], tuple[float, ...]], float]:
    """The multipliers of each half of the prompts, and the mean loss of one half's on the other, in nats."""
    if samples.prompts < 4:  # an estimate needs two prompts
        unknown = tuple([float("nan")] * len(limit_C))
        return (unknown, unknown), float("nan")
    parts = [samples.of_prompts(slice(start, None, 2)) for start in (0, 1)]
    found = [solve(part, limit_C, beta, maximum_C) for part in parts]

    def dual(part: Samples, multiplier_C: Floats) -> float:
        return dual_value(tilted(part, multiplier_C, beta), multiplier_C, limit_C, beta)

    lost = [dual(part, found[1 - k]) - dual(part, found[k]) for k, part in enumerate(parts)]
    return (tuple(found[0].tolist()), tuple(found[1].tolist())), float(np.mean(lost))
