"""BFPO: the four targets of the authors' code, and the optimum of a square loss with such targets."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.oracle.truth.population import minimise
from lit_safe.objectives import BFPO, IPO
from tests.lit_safe.objective_world import label, least, loss, world

finite = st.floats(-30, 30)
TARGETS = {(-1.0, -1.0): 0.5, (-1.0, 1.0): 1.0, (1.0, -1.0): -1.0, (1.0, 1.0): -0.5}


@pytest.mark.parametrize(("costs", "target"), TARGETS.items())
def test_the_target_of_each_pair_of_flags_by_hand(costs: tuple[float, float], target: float) -> None:
    assert loss(BFPO(beta=0.5), (target / 0.5, 0.0), label(cost=costs)) == pytest.approx(0.0)
    assert loss(BFPO(beta=0.5), (target / 0.5 + 3.0, 0.0), label(cost=costs)) == pytest.approx(9.0)


@given(finite, finite)
def test_of_safe_pairs_it_is_ipo(c: float, r: float) -> None:
    assert loss(BFPO(0.3), (c, r)) == pytest.approx(loss(IPO(0.3), (c, r)))


@given(finite, st.floats(1.5, 6), st.floats(-1, 1))
def test_the_general_target_by_its_formula(c: float, safety: float, shift: float) -> None:
    # B1 B3 I(chosen) - B3 I(rejected) - alpha with B3 = 1 / (B1 - 1); here only the chosen one is safe
    target = safety / (safety - 1) - shift
    got = loss(BFPO(1.0, safety, shift), (c, 0.0), label(cost=(-1.0, 1.0)))
    assert got == pytest.approx((c - target) ** 2, abs=1e-9)


def test_its_optimum_is_the_mean_target_over_the_reference() -> None:
    of, beta = world(), 0.7
    safe_K = (of.cost <= 0).double()
    target_KK = 1.5 * safe_K[:, None] - 0.5 * safe_K - 0.5  # of the first, chosen, over the second
    pull_KK = of.prefer * target_KK - of.prefer.T * target_KK.T
    expected_K = (of.reference + pull_KK @ of.reference.exp() / beta).log_softmax(-1)
    torch.testing.assert_close(least(BFPO(beta), of), expected_K, rtol=0, atol=1e-6)
    tables = of.reference[None].numpy(), of.reward[None].numpy(), of.cost[None, :, None].numpy()
    assert minimise(BFPO(beta), *tables).logp_PK[0] == pytest.approx(expected_K.numpy(), abs=1e-6)


def test_an_argument_out_of_range_is_named() -> None:
    with pytest.raises(ValueError, match="safety must be > 1"):
        BFPO(safety=1.0)
