"""KTO on both responses of a pair: hand-worked numbers, its reference point, and why it has no finite optimum."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_safe.objectives import KTO
from tests.lit_safe.objective_world import label, loss

finite = st.floats(-30, 30)


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def test_kto_by_hand() -> None:
    # reference point 1: the chosen is 2 above it, the rejected 3 below; (w+ s(-1) + w- s(-1.5)) / 2
    kto = KTO(beta=0.5, desirable_weight=2.0, undesirable_weight=3.0)
    got = loss(kto, (3.0, -2.0), label(), (1.0, 1.0), 1.0)
    assert got == pytest.approx((2 * sigmoid(-1) + 3 * sigmoid(-1.5)) / 2)


@pytest.mark.parametrize("costs", [(-1.0, -1.0), (-1.0, 1.0), (1.0, -1.0), (1.0, 1.0)])
def test_by_safety_each_response_has_its_own_label(costs: tuple[float, float]) -> None:
    sides = [sigmoid(-ratio if cost <= 0 else ratio) for ratio, cost in zip((3.0, -2.0), costs, strict=True)]
    got = loss(KTO(beta=1.0, desirable="safe"), (3.0, -2.0), label(cost=costs))
    assert got == pytest.approx(sum(sides) / 2)
    turned = loss(KTO(beta=1.0, desirable="safe"), (-2.0, 3.0), label(cost=costs[::-1]))
    assert turned == pytest.approx(got)


@given(finite, finite, st.floats(-10, 0))
def test_a_negative_estimate_of_the_divergence_counts_as_zero(c: float, r: float, estimate: float) -> None:
    assert loss(KTO(), (c, r), label(), (1.0, 1.0), estimate) == loss(KTO(), (c, r))


@given(finite, finite, st.floats(0, 10), st.floats(0, 10))
def test_it_reads_log_ratios_above_the_reference_point(c: float, r: float, point: float, shift: float) -> None:
    one = loss(KTO(), (c, r), label(), (1.0, 1.0), point)
    assert loss(KTO(), (c + shift, r + shift), label(), (1.0, 1.0), point + shift) == pytest.approx(one)


@given(st.floats(0.55, 0.99), st.floats(-20, 20))
def test_a_response_that_is_chosen_more_often_than_not_is_pulled_up_without_end(share: float, ratio: float) -> None:
    def mean(at: float) -> float:  # of a response against one at the reference point, chosen with this share
        return share * loss(KTO(), (at, 0.0)) + (1 - share) * loss(KTO(), (0.0, at))

    assert mean(ratio + 1) < mean(ratio)


def test_it_saturates_in_both_directions() -> None:
    assert loss(KTO(1.0), (60.0, -60.0)) == pytest.approx(0.0, abs=1e-12)
    assert loss(KTO(1.0), (-60.0, 60.0)) == pytest.approx(1.0)


def test_an_argument_out_of_range_is_named() -> None:
    with pytest.raises(ValueError, match="desirable must be one of"):
        KTO(desirable="helpful")
    with pytest.raises(ValueError, match="undesirable_weight"):
        KTO(undesirable_weight=0.0)
