"""How often certificates of the oracle world are right: ``python -m tests.data.oracle_certificate SEEDS``.

The policies are the author of the world and two optima. Their E[cost] is known exactly. Each seed draws n prompts and
one response to each, and certifies limits below, at and above the truth.

Letters: P prompts, K cells, C cost constraints, n responses.
"""

import sys
from collections.abc import Iterator
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data.oracle.truth.optimum import tilt
from data.oracle.world.tables import World, oracle_world
from lit_safe.constraint.certificate.bounded_mean import BoundedMean
from lit_safe.constraint.certificate.comparison import students_t
from lit_safe.constraint.certificate.holm import holm, worst
from lit_safe.constraint.certificate.share import Share

Floats = npt.NDArray[np.float64]

BETA = 0.5


class Policy:
    """A policy of the oracle world whose responses can be listed.

    Args:
        name: For tables.
        world: The world.
        mass_PK: Probability of each response to each prompt. Prompts are equally likely.
    """

    def __init__(self, name: str, world: World, mass_PK: Floats) -> None:
        self.name, self.world, self.mass_PK = name, world, mass_PK
        self.low_C = world.cost_PKC.min((0, 1))
        self.high_C = world.cost_PKC.max((0, 1))

    @cached_property
    def cost_C(self) -> Floats:
        """E[cost] of each constraint."""
        return np.einsum("pk,pkc->c", self.mass_PK, self.world.cost_PKC) / len(self.mass_PK)

    @cached_property
    def unsafe(self) -> float:
        """Probability of a cost > 0."""
        return float((self.mass_PK * (self.world.cost_PKC > 0).any(-1)).sum() / len(self.mass_PK))

    @cached_property
    def _cumulated_PK(self) -> Floats:
        return np.cumsum(self.mass_PK, -1)

    def draw(self, rng: np.random.Generator, count: int) -> Floats:
        """[n, C] costs of one response to each of n prompts."""
        prompt_n = rng.integers(len(self.mass_PK), size=count)
        point_n = rng.random(count)[:, None] * self._cumulated_PK[prompt_n, -1:]
        cell_n = (self._cumulated_PK[prompt_n] <= point_n).sum(-1)
        return self.world.cost_PKC[prompt_n, cell_n]


@lru_cache
def policies(costs: str = "worst") -> tuple[Policy, ...]:
    """The author, DPO's optimum, and an optimum under a multiplier."""
    world = oracle_world(costs="each" if costs == "each" else "worst")
    with np.errstate(divide="ignore"):
        reference_PK = np.log(world.author_PK)
    tilted = {
        multiplier: np.exp(tilt(reference_PK, world.reward_PK, world.cost_PKC, multiplier, BETA))
        for multiplier in (0.0, 2.0)
    }
    return (
        Policy("author", world, world.author_PK),
        Policy("optimum, multiplier 0", world, tilted[0.0]),
        Policy("optimum, multiplier 2", world, tilted[2.0]),
    )


class Counts(NamedTuple):
    """Shares of seeds, in [0, 1]."""

    covered: float  # the betting bound of E[cost] is at least E[cost]
    students_t: float  # the same of Student's t
    excess: float  # mean distance of the betting bound above E[cost], in cost units
    share: float  # the exact bound of the unsafe share is at least the share
    holds: float  # HOLDS at a limit 0.2 above E[cost]
    wrong: float  # HOLDS at a limit just below E[cost]
    refuted: float  # DOES NOT HOLD at a limit 0.2 below E[cost]


def count(policy: Policy, responses: int, seeds: int, delta: float = 0.05) -> Counts:
    """Certify ``seeds`` samples of a policy with one constraint."""
    low, high, truth = float(policy.low_C[0]), float(policy.high_C[0]), float(policy.cost_C[0])
    rows = []
    for seed in range(seeds):
        cost_n = policy.draw(np.random.default_rng([20261130, seed]), responses)[:, 0]
        sample = BoundedMean(cost_n, low, high, delta)
        upper = sample.upper(delta)
        student = low + (high - low) * students_t((cost_n - low) / (high - low), delta)
        unsafe = Share(int((cost_n > 0).sum()), responses).upper(delta)
        rows.append(
            (
                upper >= truth,
                student >= truth,
                upper - truth,
                unsafe >= policy.unsafe,
                sample.p_above(truth + 0.2) <= delta,
                upper <= truth - 1e-9,
                sample.lower(delta) > truth - 0.2,
            )
        )
    return Counts(*np.array(rows, np.float64).mean(0).tolist())


class FamilyCounts(NamedTuple):
    """Shares of seeds, in [0, 1], for all categories of harm at once."""

    wrong: float  # any HOLDS although every E[cost] is just above its limit
    uncorrected: float  # the same if each category is tested at delta
    worst: float  # the named worst category is the one with the highest E[cost] above its limit


def count_families(policy: Policy, responses: int, seeds: int, delta: float = 0.05) -> FamilyCounts:
    """Certify ``seeds`` samples of a policy with several constraints, with Holm's method."""
    names, rows = policy.world.constraints, []
    limits = {name: float(cost) - 1e-9 for name, cost in zip(names, policy.cost_C, strict=True)}
    equal = dict.fromkeys(names, 0.0)
    for seed in range(seeds):
        cost_nC = policy.draw(np.random.default_rng([20261130, seed]), responses)
        samples = {
            name: BoundedMean(cost_nC[:, c], policy.low_C[c], policy.high_C[c], delta) for c, name in enumerate(names)
        }
        p = {name: sample.p_above(limits[name]) for name, sample in samples.items()}
        rows.append(
            (
                any(step.rejected for step in holm(p, delta).values()),
                min(p.values()) <= delta,
                worst(samples, equal, delta) == names[int(policy.cost_C.argmax())],
            )
        )
    return FamilyCounts(*np.array(rows, np.float64).mean(0).tolist())


def tables(seeds: int) -> Iterator[str]:
    """The two tables, line by line."""
    percent = "{:.1f}".format
    yield "| policy | E[cost] | n | betting, % | t, % | excess | share, % | HOLDS, % | wrong, % | refuted, % |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for policy in policies():
        for responses in (20, 50, 200):
            c = count(policy, responses, seeds)
            shares = (percent(100 * value) for value in (c.share, c.holds, c.wrong, c.refuted))
            yield (
                f"| {policy.name} | {policy.cost_C[0]:+.3f} | {responses} | {percent(100 * c.covered)} | "
                f"{percent(100 * c.students_t)} | {c.excess:.3f} | {' | '.join(shares)} |"
            )
    yield ""
    yield "| policy | n | any wrong HOLDS, % | without Holm, % | worst category right, % |"
    yield "|---|---|---|---|---|"
    for policy in policies("each"):
        for responses in (50, 200):
            f = count_families(policy, responses, seeds)
            yield f"| {policy.name} | {responses} | {' | '.join(percent(100 * value) for value in f)} |"


if __name__ == "__main__":
    for line in tables(int(sys.argv[1])):
        print(line, flush=True)
