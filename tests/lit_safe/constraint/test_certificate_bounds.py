"""Bounds of a certificate: worked by hand, at their limits, and how often they cover the truth."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from lit_safe.constraint.certificate.bounded_mean import BoundedMean, best_log_capital, bets
from lit_safe.constraint.certificate.comparison import empirical_bernstein, plug_in_bernstein, students_t
from lit_safe.constraint.certificate.share import Share
from tests.lit_safe.constraint.certificate_coverage import BOUNDS, EXACT, coverage, worlds

units = st.lists(st.floats(0, 1), min_size=1, max_size=40)
deltas = st.floats(0.001, 0.5)


def test_no_unsafe_response_of_sixty_bounds_the_share_as_the_exact_formula_does():
    assert Share(0, 60).upper(0.05) == pytest.approx(1 - 0.05 ** (1 / 60), rel=1e-12)  # (1 - p)^60 = 0.05
    assert Share(0, 60).lower(0.05) == 0
    assert Share(60, 60).lower(0.05) == pytest.approx(0.05 ** (1 / 60), rel=1e-12)
    assert Share(60, 60).upper(0.05) == 1


@pytest.mark.parametrize(("hits", "count"), [(1, 1), (1, 2), (3, 60), (59, 60), (17, 200)])
def test_exact_bounds_are_those_of_scipy(hits, count):
    two_sided = binomtest(hits, count).proportion_ci(0.9, "exact")  # 5 % on each side
    assert (Share(hits, count).lower(0.05), Share(hits, count).upper(0.05)) == pytest.approx(tuple(two_sided))


@given(st.integers(1, 80).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.001, 0.999))
def test_p_values_of_a_share_are_binomial_tails(sample, limit):
    share = Share(*sample)
    assert share.p_above(limit) == pytest.approx(float(binom.cdf(*sample, limit)), abs=1e-10)
    assert share.p_within(limit) == pytest.approx(float(binom.sf(sample[0] - 1, sample[1], limit)), abs=1e-10)


def test_two_bets_worked_by_hand():
    # draws 0 and 1 at the price 1/2, delta = 1 / e: lambda_1 = sqrt(2 / (2 * 1/4)) = 2
    # mean_1 = (1/2 + 0) / 2 = 1/4, s_1^2 = (1/4 + 1/16) / 2 = 5/32, lambda_2 = sqrt(2 / (2 * 5/32)) = sqrt(6.4)
    unit = np.array([0.0, 1.0])
    bet = bets(unit, math.exp(-1))
    assert bet == pytest.approx([2.0, math.sqrt(6.4)])
    # both are capped at (3/4) / (1/2) = 3/2: the capital is 7/4 after the first draw, then 1/4 of that
    assert best_log_capital(unit, bet, 0.5, "upper") == pytest.approx(math.log(1.75))
    # the other side loses first: 1/4, then 1/4 * 7/4 < 1, so its best capital is the 1 that it began with
    assert best_log_capital(unit, bet, 0.5, "lower") == 0


def test_equal_draws_at_the_lower_end_are_bounded_by_the_capital_they_earn():
    # every draw is 0: each multiplies the capital by 1 + m * min(lambda_i, (3/4) / (1 - m)), to 20 at the bound
    found = BoundedMean(np.zeros(40), 0, 1).upper(0.05)
    capital = np.prod(1 + found * np.minimum(bets(np.zeros(40), 0.05), 0.75 / (1 - found)))
    assert capital == pytest.approx(20, rel=1e-9)
    assert BoundedMean(np.zeros(40), 0, 1).lower(0.05) == 0


def test_one_draw_or_draws_at_an_end_exclude_nothing_beyond_that_end():
    for value in (0.0, 1.0):
        one = BoundedMean(np.array([value]), 0, 1)
        assert one.lower(0.05) == 0
        assert one.upper(0.05) == 1
    assert BoundedMean(np.ones(100), 0, 1).upper(0.05) == 1
    assert BoundedMean(np.ones(100), 0, 1).lower(0.05) > 0.9


@given(units, deltas)
def test_bounds_enclose_the_mean_and_are_wider_for_a_smaller_delta(unit, delta):
    sample = BoundedMean(np.array(unit), 0, 1)
    assert 0 <= sample.lower(delta) <= sample.mean + 1e-9
    assert sample.mean - 1e-9 <= sample.upper(delta) <= 1
    assert sample.lower(delta / 2) <= sample.lower(delta) + 1e-9
    assert sample.upper(delta / 2) >= sample.upper(delta) - 1e-9


@given(units, st.floats(-5, 5), st.floats(0.1, 20))
def test_bounds_follow_units_and_a_mirrored_range_mirrors_them(unit, low, width):
    plain = BoundedMean(np.array(unit), 0, 1)
    scaled = BoundedMean(np.clip(low + width * np.array(unit), low, low + width), low, low + width)
    assert scaled.upper(0.05) == pytest.approx(low + width * plain.upper(0.05), abs=1e-6 * width)
    mirrored = BoundedMean(1 - np.array(unit), 0, 1)
    assert mirrored.lower(0.05) == pytest.approx(1 - plain.upper(0.05), abs=1e-9)


@given(units, deltas, st.floats(0.01, 0.99))
def test_a_limit_has_a_small_p_value_exactly_if_the_bound_keeps_it(unit, delta, limit):
    for sample in (BoundedMean(np.array(unit), 0, 1), Share(round(sum(unit)), len(unit))):
        if abs(sample.upper(delta) - limit) > 1e-9:
            assert (sample.upper(delta) <= limit) == (sample.p_above(limit) <= delta)
        if abs(sample.lower(delta) - limit) > 1e-9:
            assert (sample.lower(delta) > limit) == (sample.p_within(limit) <= delta)


def test_draws_that_drift_decide_nothing_beyond_their_own_mean():
    drifting = BoundedMean(np.repeat([0.0, 1.0], 20), 0, 1)  # a bet on a low mean wins, and then loses it all
    assert (drifting.upper(0.05), drifting.p_above(0.45)) == (pytest.approx(0.5), 1.0)
    assert drifting.p_above(0.55) < 0.05


@pytest.mark.parametrize("sample", [Share(3, 9), BoundedMean(np.array([0.1, 0.7]), 0, 1)])
def test_a_limit_outside_the_range_is_known_without_draws(sample):
    assert (sample.p_above(1.0), sample.p_within(1.0)) == (0, 1)
    assert (sample.p_above(-0.1), sample.p_within(-0.1)) == (1, 0)


def test_bounds_of_a_repeated_sample_come_nearer_to_its_mean():
    for sample in (Share(3, 30), BoundedMean(np.linspace(0, 0.4, 30), 0, 1)):
        more = sample.repeated(300)
        assert (more.count, more.mean) == (300, pytest.approx(sample.mean))
        assert more.upper(0.05) - more.mean < 0.5 * (sample.upper(0.05) - sample.mean)


def test_empirical_bernstein_of_two_draws_worked_by_hand():
    # 0.4 + sqrt(2 * 0.02 * log 40 / 2) + 7 log 40 / 3 > 1, so the end of the range; with 1001 draws:
    assert empirical_bernstein(np.array([0.3, 0.5]), 0.05) == 1
    unit = np.tile([0.3, 0.5], 500)
    expected = 0.4 + math.sqrt(2 * 0.01 * 1000 / 999 * math.log(40) / 1000) + 7 * math.log(40) / (3 * 999)
    assert empirical_bernstein(unit, 0.05) == pytest.approx(expected)


def test_plug_in_bernstein_of_one_draw_worked_by_hand():
    # lambda = 1/2 (capped), v = 4 (0.6 - 0.5)^2, psi = (log 2 - 1/2) / 4, delta = 0.9
    psi = (math.log(2) - 0.5) / 4
    expected = (0.3 + math.log(1 / 0.9) + 0.04 * psi) / 0.5
    assert bets(np.array([0.6]), 0.9)[0] > 0.5
    assert plug_in_bernstein(np.array([0.6]), 0.9) == pytest.approx(expected)


def test_students_t_of_equal_draws_claims_their_value_and_betting_does_not():
    assert students_t(np.zeros(20), 0.05) == 0
    assert BoundedMean(np.zeros(20), 0, 1).upper(0.05) > 0.1
    assert math.isnan(students_t(np.zeros(1), 0.05))


@pytest.mark.parametrize(
    ("values", "low", "high", "message"),
    [
        ([], 0, 1, "at least one draw"),
        ([0.5], 1, 0, "not two finite numbers in order"),
        ([0.5], 0, math.inf, "not two finite numbers"),
        ([0.5, 1.5, 2.5], 0, 1, r"2 of 3 values are outside the range \[0, 1\], the first is 1.5 \(number 2\)"),
        ([0.5, math.nan], 0, 1, r"1 of 2 values .* the first is nan"),
    ],
)
def test_draws_that_do_not_fit_their_range_are_named(values, low, high, message):
    with pytest.raises(ValueError, match=message):
        BoundedMean(np.array(values), low, high)


def test_an_impossible_share_or_level_is_named():
    with pytest.raises(ValueError, match="at least one draw"):
        Share(0, 0)
    with pytest.raises(ValueError, match="5 of 4 draws"):
        Share(5, 4)
    with pytest.raises(ValueError, match=r"delta is .* got 1"):
        Share(1, 4).upper(1)


@pytest.mark.parametrize("count", [5, 20, 100])
@pytest.mark.parametrize("costs", list(worlds()), ids=lambda costs: costs.name)
def test_every_bound_of_a_certificate_covers_the_truth(costs, count):
    assert coverage(costs, BOUNDS["betting"], count, 100, seed=1).share >= 0.92
    if costs.share:
        assert coverage(costs, EXACT["Clopper-Pearson"], count, 400, seed=1).share >= 0.93


def test_students_t_does_not_cover_skewed_costs_and_betting_is_closer_than_bernstein():
    rare = next(costs for costs in worlds() if costs.name == "rare high costs")
    found = {name: coverage(rare, bound, 50, 200, seed=2) for name, bound in BOUNDS.items()}
    assert found["Student's t"].share < 0.85
    for name in ("betting", "plug-in Bernstein", "empirical Bernstein"):
        assert found[name].share >= 0.93
    assert found["betting"].excess < 0.8 * found["plug-in Bernstein"].excess < 0.8 * found["empirical Bernstein"].excess
