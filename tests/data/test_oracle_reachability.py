"""Reachability against the oracle world's exact optimum: costs, KL and multipliers within their errors, over seeds."""

import numpy as np
import pytest

from data.oracle.study.controllers import LIMIT, SETTLED, Cost, rules, settles, simulate
from data.oracle.truth.optimum import measure, solve_multiplier, tilt
from data.oracle.world import World, oracle_world
from lit_safe.constraint.reachability.dual import solve
from lit_safe.constraint.reachability.reach import Reach, reach
from lit_safe.constraint.reachability.tilt import Samples, scored_samples

BETA = 1.0
SEEDS = 20


def reference(world: World) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(world.author_PK)


def samples(world: World, seed: int, prompts: int = 96, per_prompt: int = 16) -> Samples:
    """Prompts and responses drawn as a user would draw them: both at random."""
    random = np.random.default_rng(seed)
    row_P = random.integers(0, len(world.prompts), prompts)
    cdf_PK = world.author_PK.cumsum(-1)
    number_PK = random.random((prompts, per_prompt)) * cdf_PK[row_P, -1:]
    cell_PK = np.stack([cdf_PK[row].searchsorted(n, side="right") for row, n in zip(row_P, number_PK, strict=True)])
    return scored_samples(world.reward_PK[row_P[:, None], cell_PK], world.cost_PKC[row_P[:, None], cell_PK])


@pytest.fixture(scope="module")
def runs() -> list[Reach]:
    world = oracle_world()
    return [reach(samples(world, seed), ["cost"], [-0.15], BETA, [4.0], [0.25]) for seed in range(SEEDS)]


def test_the_multiplier_is_the_exact_one_within_its_error(runs: list[Reach]) -> None:
    world = oracle_world()
    (exact,) = solve_multiplier(reference(world), world.reward_PK, world.cost_PKC, -0.15, BETA)
    z = np.array([(run.optimum.multiplier[0] - exact) / run.multiplier_stderr[0] for run in runs])
    assert abs(z.mean()) < 0.7  # 3 errors of the mean of 20
    assert 0.6 < z.std() < 1.4
    assert all(run.verdicts == ("reached",) for run in runs)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_cost_and_kl_at_a_multiplier_are_the_exact_ones_within_their_errors(runs: list[Reach], place: int) -> None:
    world = oracle_world()
    points = [run.grid[place] for run in runs]
    logp_PK = tilt(reference(world), world.reward_PK, world.cost_PKC, points[0].multiplier, BETA)
    exact = measure(logp_PK, reference(world), world.reward_PK, world.cost_PKC)
    for z in (
        np.array([(point.cost[0] - exact.cost[0]) / point.stderr[0] for point in points]),
        np.array([(point.kl - exact.kl) / point.kl_stderr for point in points]),
    ):
        assert abs(z.mean()) < 0.8
        assert z.std() < 1.6


def test_three_constraints_at_once() -> None:
    world = oracle_world(costs="each")
    limit = [-0.45, -0.4, -0.4]
    exact_C = solve_multiplier(reference(world), world.reward_PK, world.cost_PKC, limit, BETA)
    found = reach(samples(world, 0, 400, 24), world.constraints, limit, BETA, [10.0] * 3, [])
    assert (exact_C > 0.1).any()
    for exact, one, error, verdict in zip(
        exact_C, found.optimum.multiplier, found.multiplier_stderr, found.verdicts, strict=True
    ):
        assert one == pytest.approx(exact, abs=3 * error) if verdict == "reached" else exact < 0.1


def test_a_limit_that_no_multiplier_reaches_is_called_so() -> None:
    world = oracle_world()
    with pytest.raises(ValueError, match=r"beyond reach|not met"):
        solve_multiplier(reference(world), world.reward_PK, world.cost_PKC, -0.72, BETA)
    found = reach(samples(world, 0), ["cost"], [-0.72], BETA, [10.0], [])
    assert found.verdicts == ("not reached",)
    assert found.clear == (True,)
    assert found.limit_in_reach[0] > found.optimum.cost[0] > -0.72


@pytest.mark.parametrize(("follows", "saved"), [(1.0, 1), (0.3, 3)])
def test_a_multiplier_that_starts_at_the_estimate_settles_epochs_earlier_than_one_from_0(
    follows: float, saved: int
) -> None:
    world, limit_C = Cost(), np.array([LIMIT])
    rule = rules(world, LIMIT)["subgradient"]
    near = SETTLED * abs(world.at_optimum(0.0)[0] - LIMIT)

    def epochs(start: float) -> int:
        run = simulate(world, rule._replace(start=start), limit_C, follows)
        found = settles(np.abs(run.cost[:, 0] - LIMIT), near)
        assert found is not None
        return found

    drawn = [samples(oracle_world(), seed, 64, 32) for seed in range(4)]
    starts = [float(solve(part, limit_C, BETA, np.array([10.0]))[0]) for part in drawn]
    assert all(epochs(start) <= epochs(0.0) - saved for start in starts)
