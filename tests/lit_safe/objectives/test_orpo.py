"""ORPO: the odds of the mean probability per token, beside the likelihood of the chosen response."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_safe.objectives import ORPO
from tests.lit_safe.objective_world import label, least, loss, scored, world

below = st.floats(-30, -0.1)


def test_orpo_by_hand() -> None:
    # probabilities per token e^-1 and 1/2: odds 1 / (e - 1) and 1
    got = loss(ORPO(beta=0.5), (-3.0, -2 * math.log(2)), label(), (3.0, 2.0))
    assert got == pytest.approx(1 + 0.5 * math.log1p(math.e - 1))


@given(below, below)
def test_responses_alike_differ_by_no_odds_and_exchanging_two_turns_the_odds_ratio(c: float, r: float) -> None:
    assert loss(ORPO(beta=1.0), (c, c)) == pytest.approx(-c + math.log(2))
    # log(1 + e^-x) - log(1 + e^x) = -x: the log of the odds ratio
    odds = [math.exp(value) / -math.expm1(value) for value in (c, r)]
    there, back = loss(ORPO(beta=1.0), (c, r)) + c, loss(ORPO(beta=1.0), (r, c)) + r
    assert back - there == pytest.approx(math.log(odds[0] / odds[1]), rel=1e-6, abs=1e-6)


def test_with_little_weight_its_optimum_imitates_the_chosen_responses_per_token() -> None:
    of = world()
    drawn_KK = (of.reference[:, None] + of.reference).exp().fill_diagonal_(0)
    # the least mean of -log p / length is at p in proportion to frequency / length
    chosen_K = (drawn_KK * of.prefer).sum(1) / of.length
    torch.testing.assert_close(least(ORPO(1e-6), of).exp(), chosen_K / chosen_K.sum(), rtol=0, atol=1e-5)


def test_a_response_of_probability_one_has_a_finite_loss_and_gradient() -> None:
    for value in ((0.0, -3.0), (-3.0, 0.0), (-1e5, -1e-9)):
        assert math.isfinite(scored(ORPO(), value).loss.item())
    chosen = torch.zeros(1, requires_grad=True)
    from lit_safe.types import Extra, Pair

    extra = Extra(length=Pair(torch.ones(1), torch.ones(1)))
    ORPO()(Pair(chosen, torch.full((1,), -3.0)), label(), torch.tensor(0.0), extra).loss.sum().backward()
    assert chosen.grad is not None
    assert chosen.grad.isfinite().all()
