"""The expectation over the order of a pair: by hand, against the soft objectives, its limits and its optimum."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.oracle.truth.population import minimise
from lit_safe.objectives import DPO, IPO, SACPO, BothOrders, ConstrainedDPO, Hinge, LengthNormalisedDPO, SafeDPO, SimPO
from lit_safe.types import Objective
from tests.lit_safe.objective_world import label, least, loss, scored, world

finite = st.floats(-20, 20)


def test_by_hand() -> None:
    # sigma(log 3) = 3/4, IPO at margins 3 and -3 with the target 2: 3/4 * 1 + 1/4 * 25
    rewards = label((1.0986122886681098, 0.0))
    assert loss(BothOrders(IPO(beta=0.25)), (2.0, -1.0), rewards) == pytest.approx(7.0)
    # a fifth of the orders reversed: 0.8 * 3/4 + 0.2 * 1/4 = 0.65
    assert loss(BothOrders(IPO(beta=0.25), flip_rate=0.2), (2.0, -1.0), rewards) == pytest.approx(0.65 + 0.35 * 25)


@given(finite, finite, finite, finite)
def test_of_dpo_it_is_c_dpo_at_multiplier_0_on_soft_labels(c: float, r: float, first: float, second: float) -> None:
    rewards = label((first, second))
    assert loss(BothOrders(DPO()), (c, r), rewards) == pytest.approx(loss(ConstrainedDPO(), (c, r), rewards), rel=1e-9)


@given(finite, finite, finite, st.sampled_from([(-1.0, -1.0), (1.0, -1.0), (-1.0, 1.0)]))
def test_of_safe_dpo_it_is_safe_dpo_on_soft_labels(c: float, r: float, gap: float, cost: tuple[float, float]) -> None:
    labels = label((gap, 0.0), cost)
    expected = loss(SafeDPO(offset=1.0, labels="soft"), (c, r), labels)
    assert loss(BothOrders(SafeDPO(offset=1.0)), (c, r), labels) == pytest.approx(expected, rel=1e-9)


def test_two_unsafe_responses_stay_dropped() -> None:
    both = label((1.0, 0.0), (1.0, 2.0))
    assert scored(BothOrders(SafeDPO()), (2.0, -1.0), both).weight.item() == 0
    assert not BothOrders(SafeDPO()).keeps(both).any()
    assert BothOrders(DPO()).keeps(both).all()


@given(finite, finite, finite)
def test_exchanging_the_responses_changes_nothing(c: float, r: float, gap: float) -> None:
    for objective in (BothOrders(IPO()), BothOrders(Hinge()), BothOrders(LengthNormalisedDPO(), flip_rate=0.3)):
        one = loss(objective, (c, r), label((gap, 0.0)), (2.0, 5.0))
        assert loss(objective, (r, c), label((0.0, gap)), (5.0, 2.0)) == pytest.approx(one, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("objective", [DPO(), IPO(), SimPO(), Hinge()], ids=repr)
def test_with_a_certain_order_it_is_the_objective(objective: Objective) -> None:
    certain = label((60.0, 0.0))
    value = (-8.0, -9.0)
    assert loss(BothOrders(objective), value, certain) == pytest.approx(loss(objective, value, certain), rel=1e-9)


def test_a_coin_orders_alike_when_half_of_the_orders_are_reversed() -> None:
    for gap in (0.0, 3.0):
        found = loss(BothOrders(IPO(beta=0.25), flip_rate=0.5), (2.0, -1.0), label((gap, 0.0)))
        assert found == pytest.approx((1 + 25) / 2)


@pytest.mark.parametrize("objective", [DPO(beta=0.7), IPO(beta=0.5)], ids=repr)
def test_its_population_minimiser_is_that_of_drawn_orders(objective: Objective) -> None:
    of = world()
    tables = of.reference[None].numpy(), of.reward[None].numpy(), of.cost[None, :, None].numpy()
    drawn, expected = minimise(objective, *tables), minimise(BothOrders(objective), *tables)
    assert expected.logp_PK == pytest.approx(drawn.logp_PK, abs=1e-7)
    torch.testing.assert_close(least(BothOrders(objective), of), least(objective, of), rtol=0, atol=1e-6)


def test_it_declares_what_the_objective_reads_and_rewards() -> None:
    assert BothOrders(SimPO()).needs == ("reward", "length")
    assert BothOrders(SimPO()).reference_free
    assert not BothOrders(DPO()).reference_free
    assert BothOrders(SACPO(beta=0.3)).reads_multiplier
    assert BothOrders(SACPO(beta=0.3)).beta == 0.3
    with pytest.raises(ValueError, match=r"flip_rate must lie in \[0, 0.5\], got 0.6"):
        BothOrders(DPO(), flip_rate=0.6)
