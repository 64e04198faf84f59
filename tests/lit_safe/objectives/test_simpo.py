"""SimPO: log-probs per token against a target margin; with no margin its optimum is Bradley and Terry's per token."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_safe.objectives import SimPO
from tests.lit_safe.objective_world import World, f64, label, least, loss, world

below = st.floats(-30, -0.1)


def test_simpo_by_hand() -> None:
    # 2 * (-8 / 8 - -6 / 3) - 1 = 1
    got = loss(SimPO(beta=2.0, gamma=1.0), (-8.0, -6.0), label(), (8.0, 3.0))
    assert got == pytest.approx(math.log1p(math.exp(-1)))


@given(below, below, st.integers(1, 5))
def test_a_response_repeated_has_the_same_score_and_the_loss_falls_with_the_margin(c: float, r: float, n: int) -> None:
    assert loss(SimPO(), (n * c, n * r), label(), (n, n)) == pytest.approx(loss(SimPO(), (c, r)))
    assert loss(SimPO(), (c, r)) < loss(SimPO(), (c - 0.5, r))
    assert loss(SimPO(gamma=0.0), (c, r)) < loss(SimPO(gamma=1.0), (c, r))


def test_without_gamma_its_optimum_gives_log_probs_per_token_the_differences_of_rewards() -> None:
    of, beta = world(), 1.5
    mean_K = least(SimPO(beta, 0.0), of) / of.length
    torch.testing.assert_close(mean_K - mean_K[0], (of.reward - of.reward[0]) / beta, rtol=0, atol=1e-6)


def test_gamma_exaggerates_a_preference() -> None:
    beta, gamma, p = 2.0, 1.0, 0.75
    two = World(f64(0.5, 0.5).log(), f64(math.log(3), 0.0), f64(0.0, 0.0), f64(2.0, 1.0))
    mean_K = least(SimPO(beta, gamma), two) / two.length
    # p s(gamma - z) = (1 - p) s(gamma + z) at the least expected loss; in u = e^z a quadratic
    a = math.exp(-gamma)
    u = (2 * p - 1 + math.sqrt((2 * p - 1) ** 2 + 4 * p * (1 - p) * a * a)) / (2 * (1 - p) * a)
    assert float(beta * (mean_K[0] - mean_K[1])) == pytest.approx(math.log(u), abs=1e-6)
    assert math.log(u) > math.log(p / (1 - p))


def test_an_argument_out_of_range_is_named() -> None:
    with pytest.raises(ValueError, match="gamma must be >= 0"):
        SimPO(gamma=-1.0)
