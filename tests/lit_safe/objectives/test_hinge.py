"""The hinge: zero past its margin, and an optimum that knows only which order is more frequent."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_safe.objectives import Hinge
from tests.lit_safe.objective_world import World, expected_loss, f64, loss


@pytest.mark.parametrize(("margin", "expected"), [(0.0, 1.0), (1.0, 0.5), (2.0, 0.0), (9.0, 0.0), (-2.0, 2.0)])
def test_the_hinge_by_hand(margin: float, expected: float) -> None:
    assert loss(Hinge(beta=0.5), (margin, 0.0)) == pytest.approx(expected)


@given(st.floats(-30, 30), st.floats(0.01, 5))
def test_it_depends_on_beta_times_the_margin_and_never_rises(margin: float, beta: float) -> None:
    assert loss(Hinge(beta), (margin, 0.0)) == pytest.approx(loss(Hinge(1.0), (beta * margin, 0.0)))
    assert loss(Hinge(beta), (margin + 1, 0.0)) <= loss(Hinge(beta), (margin, 0.0))


@pytest.mark.parametrize("gain", [0.3, 3.0])
def test_of_two_responses_the_better_one_ends_one_over_beta_above_however_clear_it_is(gain: float) -> None:
    two = World(f64(0.5, 0.5).log(), f64(gain, 0.0), f64(0.0, 0.0), f64(1.0, 1.0))
    mean = expected_loss(Hinge(0.5), two)
    gaps = [0.01 * k for k in range(-500, 501)]
    best = min(gaps, key=lambda gap: float(mean(f64(gap, 0.0).log_softmax(-1))))
    assert best == pytest.approx(1 / 0.5)
    assert math.isclose(float(mean(f64(best, 0.0).log_softmax(-1))), 2 * torch.sigmoid(f64(-gain)).item())
