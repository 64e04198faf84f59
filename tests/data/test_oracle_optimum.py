"""The optimum, the multiplier that meets a limit, and the distance of a policy from them, against hand and algebra."""

import math
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax

from data.oracle.truth.optimum import constrained, frontier, lagrangian, masked, measure, regret, solve_multiplier, tilt
from data.oracle.world import oracle_world

LN3 = math.log(3)


class Tables(NamedTuple):
    reference_PK: np.ndarray
    reward_PK: np.ndarray
    cost_PKC: np.ndarray


def tables(seed: int = 0, prompts: int = 4, cells: int = 9, constraints: int = 1) -> Tables:
    """A world without meaning: every response unsafe with probability a half for each constraint."""
    draw = np.random.default_rng(seed)
    reference_PK = log_softmax(2 * draw.normal(size=(prompts, cells)), -1)
    return Tables(reference_PK, draw.normal(size=(prompts, cells)), draw.normal(size=(prompts, cells, constraints)))


def policy(like: np.ndarray, seed: int = 99) -> np.ndarray:
    return log_softmax(2 * np.random.default_rng(seed).normal(size=like.shape), -1)


def log(*mass: float) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log([mass])


# one prompt; a helpful unsafe response, a safe one, malformed text that the reference never writes
BY_HAND = Tables(log(0.5, 0.5, 0.0), np.array([[LN3, 0.0, -1.0]]), np.array([[[1.0], [-1.0], [0.0]]]))

seeds = st.integers(0, 2**32 - 1)
betas = st.floats(0.05, 5)
multipliers = st.floats(0, 5)


def test_the_helpful_response_gains_by_its_reward_and_loses_by_its_cost() -> None:
    assert np.exp(tilt(*BY_HAND, multiplier=0, beta=1)) == pytest.approx(np.array([[3 / 4, 1 / 4, 0]]))
    assert np.exp(tilt(*BY_HAND, multiplier=0, beta=0.5)) == pytest.approx(np.array([[9 / 10, 1 / 10, 0]]))
    # ln 3 - ln 3 * (1 - -1) = -ln 3: now the safe one is three times as likely
    assert np.exp(tilt(*BY_HAND, multiplier=LN3, beta=1)) == pytest.approx(np.array([[1 / 4, 3 / 4, 0]]))
    assert np.exp(masked(*BY_HAND, beta=1)) == pytest.approx(np.array([[0, 1, 0]]))


def test_the_multiplier_of_a_limit_by_hand() -> None:
    # E[c] = tanh((ln 3 - 2 multiplier) / 2) is 0 at half of ln 3 and -1/2 at ln 3
    assert solve_multiplier(*BY_HAND, limit=0.0, beta=1) == pytest.approx([LN3 / 2])
    assert solve_multiplier(*BY_HAND, limit=-0.5, beta=1) == pytest.approx([LN3])


def test_the_rectified_optimum_by_hand_and_what_it_leaves_alone() -> None:
    """Costs 1 and -1 count as 1 and 0: 3 exp(-multiplier) to 1, equal at ln 3, where E[max(cost, 0)] is 1/2."""
    multiplier_C, optimum_PK = constrained(*BY_HAND, limit=0.5, beta=1, rectify=True)
    assert multiplier_C == pytest.approx([LN3])
    assert np.exp(optimum_PK) == pytest.approx(np.array([[1 / 2, 1 / 2, 0]]))
    world = oracle_world(8)
    with np.errstate(divide="ignore"):
        tables = (np.log(world.author_PK), world.reward_PK, world.cost_PKC)
    _, optimum_PK = constrained(*tables, limit=0.05, beta=1, rectify=True)
    policy_PK, plain_PK = np.exp(optimum_PK), np.exp(tilt(*tables, multiplier=0, beta=1))
    assert (policy_PK[..., None] * np.maximum(world.cost_PKC, 0)).sum(1).mean() == pytest.approx(0.05, abs=1e-6)
    safe_PK = (world.cost_PKC <= 0).all(-1) & (plain_PK > 0)
    for p in range(len(policy_PK)):
        ratio_k = policy_PK[p, safe_PK[p]] / plain_PK[p, safe_PK[p]]
        assert ratio_k == pytest.approx(ratio_k[0])


def test_a_policy_measured_by_hand() -> None:
    logp_PK = log(0.2, 0.6, 0.2)
    world = BY_HAND._replace(reference_PK=log(0.4, 0.4, 0.2))
    found = measure(logp_PK, *world)
    assert found.reward == pytest.approx(0.2 * LN3 - 0.2)
    assert found.cost == pytest.approx([-0.4])
    assert (found.unsafe, found.malformed) == pytest.approx((0.2, 0.2))
    assert found.kl == pytest.approx(0.2 * math.log(0.5) + 0.6 * math.log(1.5))
    # given well-formed text: 1/4 and 3/4, of a reference that has a half each
    assert found.reward_wellformed == pytest.approx(LN3 / 4)
    assert found.cost_wellformed == pytest.approx([-0.5])
    assert found.unsafe_wellformed == pytest.approx(0.25)
    assert found.kl_wellformed == pytest.approx(math.log(0.5) / 4 + 3 * math.log(1.5) / 4)


def test_every_prompt_counts_alike_and_the_worst_is_named() -> None:
    world = Tables(*(np.concatenate([table, table]) for table in BY_HAND))
    found = measure(np.concatenate([log(1, 0, 0), log(0, 0.5, 0.5)]), *world)
    assert (found.unsafe, found.unsafe_worst) == (0.5, 1)
    assert (found.malformed, found.malformed_worst) == (0.25, 0.5)
    assert found.reward == pytest.approx((LN3 - 0.5) / 2)
    assert found.reward_wellformed == pytest.approx(LN3 / 2)  # what is left of a prompt counts as much as the other
    assert found.kl == math.inf  # malformed text, which this reference never writes


@given(seeds, st.integers(1, 3), betas, multipliers)
def test_what_a_policy_loses_is_beta_times_its_divergence_from_the_optimum(
    seed: int, constraints: int, beta: float, multiplier: float
) -> None:
    world = tables(seed, constraints=constraints)
    optimum_PK, logp_PK = tilt(*world, multiplier, beta), policy(world.reward_PK, seed + 1)
    best, ours, start = (
        lagrangian(candidate_PK, *world, multiplier, beta) for candidate_PK in (optimum_PK, logp_PK, world.reference_PK)
    )
    found = regret(logp_PK, optimum_PK, world.reference_PK, beta)
    assert found.nats == pytest.approx(best - ours)
    assert found.nats >= 0
    assert found.share == pytest.approx((best - ours) / (best - start))
    assert found.leak == 0


@given(seeds, betas)
def test_the_masked_optimum_is_best_among_the_policies_that_are_safe(seed: int, beta: float) -> None:
    world = tables(seed)
    world.cost_PKC[:, 0] = -1  # every prompt has a safe response
    optimum_PK, logp_PK = masked(*world, beta), policy(world.reward_PK, seed + 1)
    unsafe_PK = (world.cost_PKC > 0).any(-1)
    safe_PK = log_softmax(np.where(unsafe_PK, -np.inf, logp_PK), -1)
    best, ours = (lagrangian(candidate_PK, *world, 0, beta) for candidate_PK in (optimum_PK, safe_PK))
    found = regret(logp_PK, optimum_PK, world.reference_PK, beta)
    assert found.nats == pytest.approx(best - ours)  # the leak costs nothing here, and is told apart:
    assert found.leak == pytest.approx(measure(logp_PK, *world).unsafe)
    assert regret(safe_PK, optimum_PK, world.reference_PK, beta).leak == 0


def test_the_optimum_and_the_reference_are_the_ends_of_the_scale() -> None:
    world = tables()
    for optimum_PK in (tilt(*world, 0.7, 0.5), masked(*world, 0.5)):
        assert regret(optimum_PK, optimum_PK, world.reference_PK, 0.5) == pytest.approx((0, 0, 0))
        assert regret(world.reference_PK, optimum_PK, world.reference_PK, 0.5).share == pytest.approx(1)
    assert math.isnan(regret(world.reference_PK, world.reference_PK, world.reference_PK, 0.5).share)


def test_a_prompt_without_a_safe_response_keeps_the_reference() -> None:
    world = tables(constraints=2)
    world.cost_PKC[1, :, 0] = 1
    optimum_PK = masked(*world, beta=0.5)
    assert optimum_PK[1] == pytest.approx(world.reference_PK[1])
    assert np.exp(optimum_PK[0])[(world.cost_PKC[0] > 0).any(-1)].sum() == 0
    # a safe response that the reference never gives is no way out
    world.reference_PK[1] = log_softmax(np.where(np.arange(9) == 3, -np.inf, world.reference_PK[1]))
    world.cost_PKC[1, 3] = -1
    assert np.exp(masked(*world, beta=0.5)[1]) == pytest.approx(np.exp(world.reference_PK[1]))


@given(seeds, betas, multipliers)
def test_a_reward_that_a_prompt_gives_to_every_response_changes_nothing_but_the_value(
    seed: int, beta: float, multiplier: float
) -> None:
    world = tables(seed)
    gift_P = np.arange(4.0)
    moved = world._replace(reward_PK=world.reward_PK + gift_P[:, None])
    optimum_PK = tilt(*world, multiplier, beta)
    assert tilt(*moved, multiplier, beta) == pytest.approx(optimum_PK, abs=1e-9)
    assert masked(*moved, beta) == pytest.approx(masked(*world, beta), abs=1e-9)
    value, value_moved = (lagrangian(optimum_PK, *each, multiplier, beta) for each in (world, moved))
    assert value_moved - value == pytest.approx(gift_P.mean())


@given(seeds)
def test_the_order_of_responses_means_nothing(seed: int) -> None:
    world = tables(seed, constraints=2)
    order_K = np.array([3, 1, 0, 2, 7, 6, 5, 4, 8])  # the malformed cell stays the last
    shuffled = Tables(*(table[:, order_K] for table in world))
    optimum_PK = tilt(*world, [0.3, 0.6], 0.5)
    assert tilt(*shuffled, [0.3, 0.6], 0.5) == pytest.approx(optimum_PK[:, order_K])
    for ours, theirs in zip(measure(optimum_PK, *world), measure(optimum_PK[:, order_K], *shuffled), strict=True):
        assert ours == pytest.approx(theirs)
    limit = measure(optimum_PK, *world).cost  # so the two limits can be met together
    assert solve_multiplier(*shuffled, limit, 0.5) == pytest.approx(solve_multiplier(*world, limit, 0.5), abs=1e-6)


@given(seeds, betas, st.floats(0.05, 0.9))
def test_the_solved_multiplier_spends_the_limit_exactly(seed: int, beta: float, part: float) -> None:
    world = tables(seed)
    unlimited = measure(tilt(*world, 0, beta), *world).cost[0]
    smallest = world.cost_PKC[..., 0].min(1).mean()
    limit = smallest + part * (unlimited - smallest)
    (multiplier,) = solve_multiplier(*world, limit, beta)
    assert multiplier > 0
    assert measure(tilt(*world, multiplier, beta), *world).cost == pytest.approx([limit], abs=1e-9)


@given(seeds, betas, st.tuples(st.floats(0.1, 1.2), st.floats(0.1, 1.2), st.floats(0.1, 1.2)))
def test_every_one_of_several_limits_is_met_and_what_does_not_bind_is_free(
    seed: int, beta: float, parts: tuple[float, ...]
) -> None:
    world = tables(seed, constraints=3)
    start = measure(tilt(*world, 0, beta), *world).cost
    within = measure(tilt(*world, [1.0, 2.0, 0.5], beta), *world).cost  # so the limits can be met together
    limit = within + np.array(parts) * np.abs(start - within)
    multiplier_C = solve_multiplier(*world, limit, beta)
    cost_C = measure(tilt(*world, multiplier_C, beta), *world).cost
    assert (multiplier_C >= 0).all()
    assert (cost_C <= limit + 1e-6).all()
    assert multiplier_C * (cost_C - limit) == pytest.approx(np.zeros(3), abs=1e-5)


@given(seeds, multipliers)
def test_among_policies_of_its_cost_the_optimum_is_the_best(seed: int, multiplier: float) -> None:
    world = tables(seed)
    optimum_PK = tilt(*world, multiplier, 0.5)
    rival_PK = tilt(policy(world.reward_PK, seed + 1), world.reward_PK, world.cost_PKC, 0, 5.0)
    limit = measure(rival_PK, *world).cost[0]
    # weak duality: no policy that meets its own cost has more reward, KL counted, than the dual allows
    bound = lagrangian(optimum_PK, *world, multiplier, 0.5) + multiplier * limit
    assert lagrangian(rival_PK, *world, 0, 0.5) <= bound + 1e-9


def test_a_limit_that_does_not_bind_costs_nothing() -> None:
    assert solve_multiplier(*tables(), limit=10.0, beta=0.5).tolist() == [0]
    assert solve_multiplier(*tables(constraints=2), limit=10.0, beta=0.5).tolist() == [0, 0]


@pytest.mark.parametrize("constraints", [1, 2])
def test_a_limit_beyond_reach_is_named_with_the_smallest_cost_there_is(constraints: int) -> None:
    world = tables(constraints=constraints)
    smallest = world.cost_PKC.min(1).mean(0)[-1]
    limit = [9.0] * (constraints - 1) + [smallest - 0.01]
    with pytest.raises(ValueError, match=rf"{smallest - 0.01:.6g} of constraint {constraints - 1}.*{smallest:.6g}"):
        solve_multiplier(*world, limit, beta=0.5)


def test_a_response_that_the_reference_never_gives_does_not_put_a_limit_within_reach() -> None:
    reference_PK, reward_PK, cost_PKC = BY_HAND
    cost_PKC = np.where(np.arange(3)[:, None] == 2, -5.0, cost_PKC)
    with pytest.raises(ValueError, match=r"-2 of constraint 0 is beyond reach.*policy is -1"):
        solve_multiplier(reference_PK, reward_PK, cost_PKC, limit=-2.0, beta=1)


def test_limits_that_exclude_each_other_are_not_climbed_at() -> None:
    reference_PK, reward_PK, cost_PKC = BY_HAND
    opposite_PKC = np.concatenate([cost_PKC, -cost_PKC], -1)
    with pytest.raises(ValueError, match="not met by multipliers up to 50"):
        solve_multiplier(reference_PK, reward_PK, opposite_PKC, limit=-0.5, beta=1, maximum=50)
    with pytest.raises(ValueError, match=r"not met by multipliers up to 0\.1"):
        solve_multiplier(*BY_HAND, limit=-0.5, beta=1, maximum=0.1)


def test_along_the_frontier_reward_is_bought_with_cost() -> None:
    world = tables()
    line = frontier(*world, beta=0.5, multipliers=np.linspace(0, 3, 7))
    assert line.multiplier_MC.shape == line.cost_MC.shape == (7, 1)
    assert (np.diff(line.cost_MC[:, 0]) < 0).all()
    assert line.reward_M[2] == pytest.approx(measure(tilt(*world, 1.0, 0.5), *world).reward)
    several = frontier(*tables(constraints=2), beta=0.5, multipliers=[[0, 1], [1, 0]])
    assert several.cost_MC[0, 0] > several.cost_MC[1, 0]
    assert several.cost_MC[0, 1] < several.cost_MC[1, 1]


def test_a_table_that_is_no_policy_is_refused_by_its_row() -> None:
    world = tables()
    broken_PK = world.reference_PK.copy()
    broken_PK[2] += 0.01
    with pytest.raises(ValueError, match=r"prompt 2 sum to 1\.01"):
        measure(broken_PK, *world)
    broken_PK[1] = np.nan
    with pytest.raises(ValueError, match="prompt 1 sum to nan"):
        regret(broken_PK, world.reference_PK, world.reference_PK, 0.5)
    with pytest.raises(ValueError, match=r"\(4, 8\).*\(4, 9\)"):
        measure(world.reference_PK[:, 1:], *world)
