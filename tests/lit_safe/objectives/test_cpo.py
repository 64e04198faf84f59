"""CPO: DPO's loss on log-probs, beside the likelihood of the chosen response."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_safe.objectives import CPO, DPO
from tests.lit_safe.objective_world import label, least, loss, world

below = st.floats(-30, -0.1)


def test_cpo_by_hand() -> None:
    # .5 * (-8 + 6) = -1, and 8 nats over 4 tokens
    got = loss(CPO(beta=0.5, nll_weight=0.3), (-8.0, -6.0), label(), (4.0, 3.0))
    assert got == pytest.approx(math.log1p(math.e) + 0.3 * 2)
    summed = loss(CPO(beta=0.5, nll_weight=0.3, average_nll=False), (-8.0, -6.0), label(), (4.0, 3.0))
    assert summed == pytest.approx(math.log1p(math.e) + 0.3 * 8)


@given(below, below)
def test_without_the_likelihood_it_is_dpo_with_a_uniform_reference(c: float, r: float) -> None:
    assert loss(CPO(nll_weight=0.0), (c, r)) == loss(DPO(), (c, r))


def test_without_the_likelihood_its_optimum_forgets_the_reference() -> None:
    of, beta = world(), 1.5
    torch.testing.assert_close(
        least(CPO(beta, nll_weight=0.0), of), (of.reward / beta).log_softmax(-1), rtol=0, atol=1e-6
    )


def test_with_much_likelihood_its_optimum_imitates_the_chosen_responses() -> None:
    of = world()
    drawn_KK = (of.reference[:, None] + of.reference).exp().fill_diagonal_(0)
    chosen_K = (drawn_KK * of.prefer).sum(1)
    found = least(CPO(1.0, nll_weight=1e5, average_nll=False), of)
    torch.testing.assert_close(found.exp(), chosen_K / chosen_K.sum(), rtol=0, atol=1e-4)


def test_an_argument_out_of_range_is_named() -> None:
    with pytest.raises(ValueError, match="nll_weight must be >= 0"):
        CPO(nll_weight=-1.0)
