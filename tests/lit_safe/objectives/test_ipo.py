"""IPO: hand-worked numbers, its two normalisations, and the optimum that the paper names."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_safe.objectives import IPO
from tests.lit_safe.objective_world import label, least, loss, world

finite = st.floats(-30, 30)


def test_ipo_by_hand() -> None:
    # margin 3, target 1 / (2 * .25) = 2
    assert loss(IPO(beta=0.25), (2.0, -1.0)) == pytest.approx(1.0)
    # per token: 8 / 4 - 3 / 3 = 1, target 2
    assert loss(IPO(beta=0.25, average=True), (8.0, 3.0), label(), (4.0, 3.0)) == pytest.approx(1.0)


@given(finite, finite, finite)
def test_it_reads_the_margin_and_averaging_over_one_token_is_no_averaging(c: float, r: float, shift: float) -> None:
    assert loss(IPO(), (c + shift, r + shift)) == pytest.approx(loss(IPO(), (c, r)), rel=1e-9, abs=1e-6)
    assert loss(IPO(average=True), (c, r)) == loss(IPO(), (c, r))


@pytest.mark.parametrize("beta", [0.3, 2.0])
def test_its_optimum_tilts_the_reference_by_the_mean_preference_over_it(beta: float) -> None:
    of = world()
    # Azar et al. 2023: pi* = ref * exp(E_{y' ~ ref}[p(y > y')] / tau), normalised
    wins_K = of.prefer @ of.reference.exp()
    expected_K = (of.reference + wins_K / beta).log_softmax(-1)
    torch.testing.assert_close(least(IPO(beta), of), expected_K, rtol=0, atol=1e-6)


def test_averaged_its_optimum_gives_a_log_ratio_per_token() -> None:
    of, beta = world(), 2.0
    ratio_K = (least(IPO(beta, average=True), of) - of.reference) / of.length
    wins_K = of.prefer @ of.reference.exp() / beta
    torch.testing.assert_close(ratio_K - ratio_K[0], wins_K - wins_K[0], rtol=0, atol=1e-6)
