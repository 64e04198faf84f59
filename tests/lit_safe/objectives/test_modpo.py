"""MODPO: a margin from a second score; with minus the cost, its optimum is C-DPO's at another multiplier and beta."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_safe.objectives import DPO, MODPO
from lit_safe.types import Annotation, Pair
from tests.lit_safe.objective_world import (
    ZERO,
    f64,
    label,
    least,
    loss,
    pair,
    tilt,
    world,
)

finite = st.floats(-30, 30)


def test_modpo_by_hand() -> None:
    # beta / w0 = .4, w1 / w0 = 1 / 4 * ... w0 = .8: .5 / .8 * 2 - .25 * -(1 - -1) = 1.25 + .5
    got = loss(MODPO(beta=0.5, weight=0.8), (3.0, 1.0), label(cost=(1.0, -1.0)))
    assert got == pytest.approx(math.log1p(math.exp(-1.75)))
    # the reward as the second score: 1.25 - .25 * 2
    got = loss(MODPO(beta=0.5, weight=0.8, score="reward"), (3.0, 1.0), label(reward=(2.0, 0.0)))
    assert got == pytest.approx(math.log1p(math.exp(-0.75)))


@given(finite, finite, finite, finite)
def test_with_all_weight_on_the_order_it_is_dpo(c: float, r: float, one: float, two: float) -> None:
    assert loss(MODPO(weight=1.0), (c, r), label(cost=(one, two))) == pytest.approx(loss(DPO(), (c, r)))


@given(finite, finite, st.floats(0.1, 0.9))
def test_two_responses_of_one_cost_make_it_dpo_with_beta_over_weight(c: float, r: float, weight: float) -> None:
    assert loss(MODPO(0.1, weight), (c, r), label(cost=(2.0, 2.0))) == pytest.approx(loss(DPO(0.1 / weight), (c, r)))


@pytest.mark.parametrize("weight", [0.25, 0.7])
def test_its_optimum_is_the_tilt_by_both(weight: float) -> None:
    of, beta = world(), 0.6
    expected_K = tilt(of, (1 - weight) / weight, beta / weight)
    torch.testing.assert_close(least(MODPO(beta, weight), of), expected_K, rtol=0, atol=1e-6)


def test_several_costs_are_summed() -> None:
    several = Annotation(pair(0.0, 0.0), Pair(f64(0.5, 0.7)[None], f64(-1.0, 0.2)[None]))
    got = MODPO()(pair(3.0, 1.0), several, ZERO).loss.item()
    assert got == pytest.approx(loss(MODPO(), (3.0, 1.0), label(cost=(1.2, -0.8))))


@pytest.mark.parametrize(
    ("options", "word"), [({"weight": 0.0}, "weight"), ({"score": "help"}, "score"), ({"link": "cubic"}, "link")]
)
def test_an_argument_out_of_range_is_named(options: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        MODPO(**options)
