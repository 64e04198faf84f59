"""Robust DPO: its loss is that of DPO on average over flips, and so is its optimum. Conservative DPO beside it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logit

from lit_safe.objectives import DPO, RobustDPO
from tests.lit_safe.objective_world import World, f64, least, loss, tilt, world

finite = st.floats(-30, 30)


def test_robust_dpo_by_hand() -> None:
    # z = .5 * 2 = 1, target .9 / .8: (.9 log(1 + e^-1) - .1 log(1 + e)) / .8
    expected = (0.9 * math.log1p(math.exp(-1)) - 0.1 * math.log1p(math.e)) / 0.8
    assert loss(RobustDPO(beta=0.5, flip_rate=0.1), (3.0, 1.0)) == pytest.approx(expected)


@given(finite, finite, st.floats(0, 0.45))
def test_over_flips_it_is_dpo_on_average_and_without_flips_it_is_dpo(c: float, r: float, flip: float) -> None:
    robust = RobustDPO(flip_rate=flip)
    mean = (1 - flip) * loss(robust, (c, r)) + flip * loss(robust, (r, c))
    assert mean == pytest.approx(loss(DPO(), (c, r)), rel=1e-6, abs=1e-9)
    assert loss(RobustDPO(flip_rate=0.0), (c, r)) == loss(DPO(), (c, r))


def test_on_flipped_pairs_its_optimum_is_that_of_dpo_on_true_ones_and_conservative_dpo_stays_nearer() -> None:
    of, flip = world(), 0.2
    torch.testing.assert_close(least(RobustDPO(1.0, flip), of, flip), tilt(of), rtol=0, atol=1e-6)
    torch.testing.assert_close(least(DPO(1.0), of), tilt(of), rtol=0, atol=1e-6)

    def spread(policy_K: torch.Tensor) -> float:
        ratio_K = policy_K - of.reference
        return float(ratio_K.max() - ratio_K.min())

    assert (
        spread(least(DPO(1.0, label_smoothing=flip), of, flip)) < spread(least(DPO(1.0), of, flip)) < spread(tilt(of))
    )


def test_conservative_dpo_shrinks_a_preference_by_twice_its_smoothing() -> None:
    two = World(f64(0.5, 0.5).log(), f64(math.log(3), 0.0), f64(0.0, 0.0), f64(1.0, 1.0))  # preferred in 3 of 4 pairs
    gap_K = least(DPO(0.5, label_smoothing=0.1), two)
    assert float(gap_K[0] - gap_K[1]) == pytest.approx(logit(0.8 * 0.75 + 0.1) / 0.5)


def test_the_loss_has_no_lower_bound() -> None:
    assert loss(RobustDPO(beta=1.0, flip_rate=0.1), (1e4, 0.0)) < -1e3


def test_an_impossible_rate_is_named() -> None:
    with pytest.raises(ValueError, match="flip_rate must lie in"):
        RobustDPO(flip_rate=0.5)
