"""Reachability before training: the tilted reference by hand, its derivatives, symmetries, and the multiplier found."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_safe.constraint.reachability.dual import dual_value, gap, solve
from lit_safe.constraint.reachability.reach import Reach, reach
from lit_safe.constraint.reachability.tilt import Samples, effective_size, plain, scored_samples, tilted

LN3 = math.log(3)
BETA = 0.7


def drawn(seed: int = 0, prompts: int = 40, samples: int = 24, constraints: int = 1) -> Samples:
    """Rewards and costs of a helpful and unsafe kind: they rise together."""
    random = np.random.default_rng(seed)
    cost_PKC = random.normal(size=(prompts, 1, constraints)) / 4 + random.normal(size=(prompts, samples, constraints))
    return scored_samples(cost_PKC.mean(-1) + random.normal(size=(prompts, samples)), cost_PKC)


def at(*multiplier: float) -> np.ndarray:
    return np.array(multiplier)


def test_the_tilt_of_two_samples_by_hand() -> None:
    # a helpful unsafe response, three times as likely by reward, and a safe one; each half of the reference's samples
    samples = scored_samples([[LN3, 0.0]] * 2, [[1.0, -1.0]] * 2)
    found = plain(samples, at(0.0), beta=1.0)
    assert found.cost_PC == pytest.approx(np.full((2, 1), 0.75 - 0.25))
    assert found.reward_P == pytest.approx(0.75 * LN3)
    assert found.log_z_P == pytest.approx(math.log((3 + 1) / 2))
    assert found.kl_P == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert found.slope_PCC[:, 0, 0] == pytest.approx(-4 * 0.75 * 0.25)  # -Var(c) / beta
    assert effective_size(samples, at(0.0), 1.0) == pytest.approx(1 / (0.75**2 + 0.25**2))
    # at half of ln 3 the cost of 2 units between them cancels the reward
    assert plain(samples, at(LN3 / 2), beta=1.0).cost_PC == pytest.approx(np.zeros((2, 1)), abs=1e-15)


def test_without_rewards_and_multiplier_the_tilt_is_the_reference() -> None:
    samples = scored_samples(None, drawn().cost_PKC)
    for estimate in (plain, tilted):
        found = estimate(samples, at(0.0), BETA)
        assert found.cost_PC == pytest.approx(samples.cost_PKC.mean(1))
        assert found.kl_P == pytest.approx(np.zeros(40), abs=1e-12)
        assert found.log_z_P == pytest.approx(np.zeros(40), abs=1e-12)
    assert effective_size(samples, at(0.0), BETA) == pytest.approx(np.full(40, 24.0))


@pytest.mark.parametrize("estimate", [plain, tilted])
def test_the_cost_falls_by_its_slope_and_the_dual_by_limit_minus_cost(estimate) -> None:
    samples, limit_C, step = drawn(constraints=2), at(0.1, -0.2), 1e-6
    for c in range(2):
        middle, move = at(0.4, 0.9), step * np.eye(2)[c]
        low, high = (estimate(samples, middle + sign * move, BETA) for sign in (-1, 1))
        here = estimate(samples, middle, BETA)
        rise = (high.cost_PC - low.cost_PC) / (2 * step)
        assert rise == pytest.approx(here.slope_PCC[:, :, c], rel=1e-5, abs=1e-7)
        values = [dual_value(e, middle + s * move, limit_C, BETA) for e, s in ((low, -1), (high, 1))]
        assert (values[1] - values[0]) / (2 * step) == pytest.approx(limit_C[c] - here.cost_PC.mean(0)[c], rel=1e-6)


@given(st.integers(0, 2**32 - 1), st.floats(0, 3))
@settings(max_examples=20, deadline=None)
def test_the_gap_is_the_dual_minus_the_value_of_the_tilted_policy(seed: int, multiplier: float) -> None:
    samples, limit_C = drawn(seed, 5, 8), at(0.2)
    here = plain(samples, at(multiplier), BETA)
    value = here.reward_P.mean() - BETA * here.kl_P.mean()
    difference = dual_value(here, at(multiplier), limit_C, BETA) - value
    assert gap(here, at(multiplier), limit_C) == pytest.approx(difference, abs=1e-9)
    assert (here.kl_P >= -1e-12).all()
    assert (here.kl_P <= math.log(8) + 1e-12).all()


def test_a_constant_reward_of_a_prompt_changes_nothing_but_the_dual() -> None:
    samples = drawn()
    moved = samples._replace(reward_PK=samples.reward_PK + np.arange(40.0)[:, None])
    before, after = (found(s, -0.3) for s in (samples, moved))
    assert after.optimum.multiplier == pytest.approx(before.optimum.multiplier)
    assert after.optimum.dual == pytest.approx(before.optimum.dual + 19.5)
    assert after.optimum.cost == pytest.approx(before.optimum.cost)


def test_costs_in_other_units_take_a_multiplier_in_other_units() -> None:
    samples = drawn(constraints=2)
    factor_C = at(1000.0, 0.001)
    one = solve(samples, at(-0.3, -0.2), BETA, at(1e5, 1e5))
    other = solve(samples._replace(cost_PKC=samples.cost_PKC * factor_C), at(-0.3, -0.2) * factor_C, BETA, at(1e5, 1e5))
    assert (one > 0.1).all()
    assert other * factor_C == pytest.approx(one, rel=1e-4)


def found(samples: Samples, *limit: float, maximum: float = 10.0) -> Reach:
    return reach(samples, [f"harm {c}" for c in range(len(limit))], limit, BETA, [maximum] * len(limit))


def test_the_multiplier_meets_its_limit_where_it_can_and_is_an_end_where_it_cannot() -> None:
    samples = drawn()
    inside, loose, tight = found(samples, -0.3), found(samples, 5.0), found(samples, -5.0)
    assert inside.verdicts == ("reached",)
    assert inside.optimum.cost == pytest.approx((-0.3,), abs=1e-8)
    assert inside.optimum.gap == pytest.approx(0, abs=1e-8)
    assert inside.multiplier_stderr[0] > 0
    assert loose.verdicts == ("does not bind",)
    assert loose.optimum.multiplier == (0.0,)
    assert tight.verdicts == ("not reached",)
    assert tight.optimum.multiplier == (10.0,)
    assert math.isnan(tight.multiplier_stderr[0])
    assert tight.smallest[0] == pytest.approx(samples.cost_PKC.min(1).mean())
    assert (inside.reachable, loose.reachable, tight.reachable) == (True, True, False)


def test_a_difference_within_the_error_is_not_clear() -> None:
    samples = drawn()
    start = found(samples, 5.0).optimum
    near, far = (found(samples, start.cost[0] + errors * start.stderr[0]) for errors in (1, 2))
    assert (near.verdicts, near.clear) == (("does not bind",), (False,))
    assert (far.verdicts, far.clear) == (("does not bind",), (True,))


def test_a_constraint_that_does_not_bind_leaves_the_other_one_as_it_was() -> None:
    one, two = drawn(), drawn()
    silent = np.full((*two.reward_PK.shape, 1), -1.0)
    pair = two._replace(cost_PKC=np.concatenate([two.cost_PKC, silent], axis=-1))
    (alone,), both = solve(one, at(-0.3), BETA, at(10.0)), solve(pair, at(-0.3, 0.0), BETA, at(10.0, 5.0))
    assert both == pytest.approx([alone, 0.0], abs=1e-5)


def test_the_grid_goes_from_0_to_the_maximum_and_the_cost_falls_along_it() -> None:
    grid = found(drawn(samples=200), -0.3, maximum=1.0).grid
    assert [point.multiplier[0] for point in grid] == [0, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1]
    costs = [point.cost[0] for point in grid]
    assert costs == sorted(costs, reverse=True)


def test_equal_halves_agree_and_one_halfs_multiplier_loses_nothing_on_the_other() -> None:
    samples = drawn()
    twice = Samples(*(np.repeat(part, 2, axis=0) for part in samples))
    same = found(twice, -0.3)
    assert same.halves[0] == pytest.approx(same.halves[1])
    assert same.half_regret == pytest.approx(0, abs=1e-12)
    assert found(samples, -0.3).half_regret > 0


def test_the_jackknife_removes_most_of_the_bias_of_few_samples() -> None:
    # responses of cost 1 and -1, equally likely; the truth by hand: E[c] = -tanh(multiplier / beta)
    random = np.random.default_rng(0)
    samples = scored_samples(None, random.choice([-1.0, 1.0], size=(20_000, 24)))
    truth = -math.tanh(0.7 / BETA)
    biased, mended = (estimate(samples, at(0.7), BETA).cost_PC for estimate in (plain, tilted))
    error = mended.std() / math.sqrt(len(mended))
    assert abs(biased.mean() - truth) > 10 * error
    assert abs(mended.mean() - truth) < 0.2 * abs(biased.mean() - truth)


@pytest.mark.parametrize(
    ("reward", "cost", "message"),
    [
        ([[0.0, 1.0]] * 3, [[0.0, 1.0, 2.0]] * 3, "rewards"),
        (None, [[0.0]] * 3, "at least 2 prompts and 2 samples"),
        ([[0.0, 1.0], [0.0, math.nan]], [[0.0, 1.0]] * 2, "the reward of sample 1 of prompt 1 is not finite"),
        (None, [[0.0, 1.0], [math.inf, 0.0]], "the cost of sample 0 of prompt 1 is not finite"),
    ],
)
def test_samples_that_cannot_be_used_are_named(reward, cost, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scored_samples(reward, cost)
