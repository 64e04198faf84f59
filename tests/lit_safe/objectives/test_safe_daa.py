"""SafeDPO on other links: logistic is SafeDPO itself; square and hinge leave unsafe responses a probability."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.oracle.truth.population import minimise
from lit_safe.objectives import IPO, Hinge, SafeDAA, SafeDPO
from tests.lit_safe.objective_world import World, f64, label, least, loss, scored, world

finite = st.floats(-30, 30)
COSTS = [(-1.0, -1.0), (-1.0, 1.0), (1.0, -1.0), (1.0, 1.0)]


@pytest.mark.parametrize("costs", COSTS)
@given(c=finite, r=finite)
def test_the_logistic_link_is_safe_dpo(costs: tuple[float, float], c: float, r: float) -> None:
    mine, theirs = (scored(kind, (c, r), label(cost=costs)) for kind in (SafeDAA(link="logistic"), SafeDPO()))
    assert torch.equal(mine.loss, theirs.loss)
    assert torch.equal(mine.weight, theirs.weight)


def test_the_other_links_by_hand() -> None:
    swapped = label(cost=(1.0, -1.0))  # logit .5 * (1 - 3) - 2 ... of the swapped margin: .5 * -2 - 2 = -3
    assert loss(SafeDAA(0.5, 2.0, "hinge"), (3.0, 1.0), swapped) == pytest.approx(4.0)
    assert loss(SafeDAA(0.5, 2.0, "square"), (3.0, 1.0), swapped) == pytest.approx((3.5 / 0.5) ** 2)


@given(finite, finite)
def test_on_safe_pairs_or_without_offset_the_links_are_ipo_and_the_hinge(c: float, r: float) -> None:
    for mine, theirs in ((SafeDAA(link="square"), IPO()), (SafeDAA(link="hinge"), Hinge())):
        assert loss(mine, (c, r)) == loss(theirs, (c, r))
    kept = label(cost=(-1.0, 1.0))
    assert loss(SafeDAA(offset=0.0, link="square"), (c, r), kept) == loss(IPO(), (c, r))


@given(finite, finite, st.sampled_from(["square", "hinge"]))
def test_the_order_of_a_safe_and_an_unsafe_response_does_not_matter(c: float, r: float, link: str) -> None:
    one = loss(SafeDAA(link=link), (c, r), label(cost=(1.0, -1.0)))
    assert one == pytest.approx(loss(SafeDAA(link=link), (r, c), label(cost=(-1.0, 1.0))))


def test_the_square_leaves_an_unsafe_response_a_finite_gap_of_half_plus_offset_over_beta() -> None:
    two = World(f64(0.5, 0.5).log(), f64(0.0, 1.0), f64(-1.0, 1.0), f64(1.0, 1.0))  # the second is unsafe
    gap_K = least(SafeDAA(0.5, 1.0, "square"), two)
    assert float(gap_K[0] - gap_K[1]) == pytest.approx((1.0 + 0.5) / 0.5, abs=1e-6)


def test_the_oracle_finds_the_squares_optimum_and_says_that_the_logistic_one_diverges() -> None:
    of = world()
    tables = of.reference[None].numpy(), of.reward[None].numpy(), of.cost[None, :, None].numpy()
    found = minimise(SafeDAA(0.5, 1.0, "square"), *tables)
    assert not found.diverges
    torch.testing.assert_close(
        torch.from_numpy(found.logp_PK[0]), least(SafeDAA(0.5, 1.0, "square"), of), rtol=0, atol=1e-6
    )
    assert minimise(SafeDAA(0.5, 1.0, "logistic"), *tables).diverges
    assert math.isfinite(found.gradient)


def test_an_argument_out_of_range_is_named() -> None:
    with pytest.raises(ValueError, match="link must be one of"):
        SafeDAA(link="cubic")
    with pytest.raises(ValueError, match="offset must be >= 0"):
        SafeDAA(offset=-1.0)
