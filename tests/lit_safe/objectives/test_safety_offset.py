"""The offset without the transform T: DPO with an offset, and SafeDPO on pairs that T leaves as they are."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_safe.objectives import DPO, SafeDPO, SafetyOffsetDPO
from tests.lit_safe.objective_world import label, loss, scored

finite = st.floats(-30, 30)
COSTS = [(-1.0, -1.0), (-1.0, 1.0), (1.0, -1.0), (1.0, 1.0)]


def by_hand(beta: float, offset: float, margin: float, gap: int) -> float:
    return math.log1p(math.exp(-(beta * margin - offset * gap)))


@pytest.mark.parametrize(("costs", "gap"), list(zip(COSTS, (0, 1, -1, 0), strict=True)))
@given(c=finite, r=finite)
def test_the_offset_has_the_sign_of_the_pairs_order_and_no_pair_is_left_out(
    costs: tuple[float, float], gap: int, c: float, r: float
) -> None:
    found = scored(SafetyOffsetDPO(0.5, 2.0), (c, r), label(cost=costs))
    assert found.loss.item() == pytest.approx(by_hand(0.5, 2.0, c - r, gap), rel=1e-12)
    assert found.weight.item() == 1


@pytest.mark.parametrize("costs", COSTS)
@given(c=finite, r=finite)
def test_without_an_offset_it_is_dpo(costs: tuple[float, float], c: float, r: float) -> None:
    assert loss(SafetyOffsetDPO(offset=0.0), (c, r), label(cost=costs)) == loss(DPO(), (c, r))


@pytest.mark.parametrize("costs", COSTS[:2])
@given(c=finite, r=finite)
def test_where_chosen_is_safe_it_is_safe_dpo(costs: tuple[float, float], c: float, r: float) -> None:
    """T keeps these pairs in their order; so on pairs like those of DPO-SAFEBETTER the two objectives are one."""
    mine, theirs = (scored(kind, (c, r), label(cost=costs)) for kind in (SafetyOffsetDPO(), SafeDPO()))
    assert torch.equal(mine.loss, theirs.loss)


@given(c=finite, r=finite)
def test_the_transform_is_the_whole_difference_on_an_unsafe_chosen_response(c: float, r: float) -> None:
    swapped = loss(SafeDPO(), (c, r), label(cost=(1.0, -1.0)))
    assert swapped == pytest.approx(loss(SafetyOffsetDPO(), (r, c), label(cost=(-1.0, 1.0))))
    kept = loss(SafetyOffsetDPO(), (c, r), label(cost=(1.0, -1.0)))
    assert kept == pytest.approx(by_hand(0.1, 10.0, c - r, -1), rel=1e-9)


def test_an_argument_out_of_range_is_named() -> None:
    with pytest.raises(ValueError, match="offset must be >= 0"):
        SafetyOffsetDPO(offset=-1.0)
    with pytest.raises(ValueError, match="beta must be > 0"):
        SafetyOffsetDPO(beta=0.0)
