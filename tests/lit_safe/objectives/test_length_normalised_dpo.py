"""DPO on log-ratios per token."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq

from lit_safe.objectives import DPO, LengthNormalisedDPO
from tests.lit_safe.objective_world import label, least, loss, world

finite = st.floats(-30, 30)


def test_length_normalised_dpo_by_hand() -> None:
    # .5 * (8 / 4 - 0) = 1
    got = loss(LengthNormalisedDPO(beta=0.5), (8.0, 0.0), label(), (4.0, 7.0))
    assert got == pytest.approx(math.log1p(math.exp(-1)))


@given(finite, finite, st.integers(1, 9))
def test_of_responses_of_one_length_it_is_dpo_with_beta_over_the_length(c: float, r: float, n: int) -> None:
    per_token = loss(LengthNormalisedDPO(beta=0.5 * n), (c, r), label(), (n, n))
    assert per_token == pytest.approx(loss(DPO(beta=0.5), (c, r)))


@given(finite, finite)
def test_a_response_without_a_token_counts_as_one(c: float, r: float) -> None:
    assert loss(LengthNormalisedDPO(0.1), (c, r), label(), (0.0, 1.0)) == loss(DPO(0.1), (c, r))


def test_its_optimum_tilts_the_reference_by_reward_times_length() -> None:
    of, beta = world(), 3.0

    def logp(shift: float) -> torch.Tensor:
        return of.reference + of.length * (of.reward + shift) / beta

    shift = brentq(lambda s: float(logp(s).logsumexp(-1)), -50, 50, xtol=1e-12)  # a constant per token is free
    torch.testing.assert_close(least(LengthNormalisedDPO(beta), of), logp(shift), rtol=0, atol=1e-6)
