"""Certificates where the truth is known: in the oracle world, on responses drawn from policies that can be listed."""

import numpy as np
import pytest

from tests.data.oracle_certificate import count, count_families, policies


@pytest.mark.parametrize("policy", policies(), ids=lambda policy: policy.name)
def test_the_bounds_cover_the_exact_cost_and_a_wrong_holds_is_rare(policy):
    found = count(policy, 60, 120)
    assert found.covered >= 0.92
    assert found.share >= 0.9  # of an exact bound, nominally 95 % and more
    assert found.wrong <= 0.08


def test_a_true_limit_at_some_distance_is_certified_and_a_false_one_refuted():
    found = count(policies()[0], 200, 60)
    assert found.holds >= 0.9
    assert found.refuted >= 0.95


def test_students_t_covers_less_often_than_it_claims_where_costs_are_skewed():
    optimum = policies()[2]
    found = count(optimum, 20, 300)
    assert found.students_t < 0.93
    assert found.covered >= 0.95


def test_holm_keeps_the_chance_of_any_wrong_holds_over_all_categories():
    found = count_families(policies("each")[1], 200, 200)
    assert found.wrong <= 0.06
    assert found.uncorrected > found.wrong


def test_the_draws_follow_the_policy():
    for policy in (*policies(), *policies("each")):
        cost_nC = policy.draw(np.random.default_rng(0), 20_000)
        assert cost_nC.mean(0) == pytest.approx(policy.cost_C, abs=0.03)
        assert (cost_nC > 0).any(1).mean() == pytest.approx(policy.unsafe, abs=0.02)
