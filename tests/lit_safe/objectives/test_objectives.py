"""What DPO, C-DPO and SafeDPO say of a pair, from numbers worked by hand, limits and symmetries."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lit_safe.objectives import DPO, ConstrainedDPO, SafeDPO
from lit_safe.objectives.bradley_terry import nll
from lit_safe.types import Annotation, Pair

ZERO = torch.tensor(0.0, dtype=torch.float64)
LOG2 = math.log(2)
finite = st.floats(-50, 50)


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def pair(chosen: list[float], rejected: list[float]) -> Pair:
    return Pair(f64(*chosen), f64(*rejected))


def annotation(reward: Pair, cost: Pair, draw: float = 0.5) -> Annotation:
    return Annotation(reward, cost, torch.full_like(reward.chosen, draw))


SAFE = annotation(pair([2.0], [1.0]), pair([-1.0], [-1.0]))


def test_dpo_by_hand() -> None:
    # log-ratios 3 and 1, beta .5: -log sigmoid(.5 * 2) = log(1 + e^-1)
    assert DPO(beta=0.5)(pair([3.0], [1.0]), SAFE, ZERO).loss.item() == pytest.approx(math.log1p(math.exp(-1)))


def test_dpo_label_smoothing_by_hand() -> None:
    # .9 * log(1 + e^-1) + .1 * log(1 + e)
    expected = 0.9 * math.log1p(math.exp(-1)) + 0.1 * math.log1p(math.e)
    got = DPO(beta=0.5, label_smoothing=0.1)(pair([3.0], [1.0]), SAFE, ZERO).loss.item()
    assert got == pytest.approx(expected)


def test_constrained_dpo_by_hand() -> None:
    # reward margin 1, cost margin 2, multiplier .25: P = sigmoid(1 - .5); logit = .5 * 2
    label = annotation(pair([2.0], [1.0]), pair([1.0], [-1.0]))
    prefer = 1 / (1 + math.exp(-0.5))
    expected = prefer * math.log1p(math.exp(-1)) + (1 - prefer) * math.log1p(math.e)
    got = ConstrainedDPO(beta=0.5)(pair([3.0], [1.0]), label, f64(0.25)[0]).loss.item()
    assert got == pytest.approx(expected)


def test_rectified_constrained_dpo_by_hand() -> None:
    # costs 1 and -1 count as 1 and 0: cost margin 1, P = sigmoid(1 - .25); logit = .5 * 2
    label = annotation(pair([2.0], [1.0]), pair([1.0], [-1.0]))
    prefer = 1 / (1 + math.exp(-0.75))
    expected = prefer * math.log1p(math.exp(-1)) + (1 - prefer) * math.log1p(math.e)
    got = ConstrainedDPO(beta=0.5, rectify=True)(pair([3.0], [1.0]), label, f64(0.25)[0]).loss.item()
    assert got == pytest.approx(expected)


def test_rectified_a_safe_response_gains_nothing_by_being_safer_and_a_missing_cost_stays_missing() -> None:
    logratio, reward = pair([3.0], [1.0]), pair([2.0], [1.0])
    rectified = ConstrainedDPO(rectify=True)
    safe = [rectified(logratio, annotation(reward, pair([c], [-1.0])), f64(2.0)[0]).loss for c in (0.0, -1.0, -9.0)]
    assert safe[0] == safe[1] == safe[2]
    unconstrained = ConstrainedDPO()(logratio, annotation(reward, pair([-1.0], [-9.0])), ZERO).loss
    assert safe[0] == unconstrained
    assert rectified(logratio, annotation(reward, pair([math.nan], [-1.0])), f64(2.0)[0]).loss.isnan().all()


@pytest.mark.parametrize(
    ("chosen_cost", "rejected_cost", "logit", "weight"),
    [
        (-1.0, -1.0, 1.0, 1.0),  # both safe: plain DPO
        (-1.0, 1.0, 1.0 - 10.0, 1.0),  # the chosen alone is safe: kept, with the offset
        (1.0, -1.0, -1.0 - 10.0, 1.0),  # the rejected alone is safe: swapped, with the offset
        (1.0, 1.0, 1.0, 0.0),  # both unsafe: dropped
    ],
)
def test_safe_dpo_by_hand(chosen_cost: float, rejected_cost: float, logit: float, weight: float) -> None:
    label = annotation(pair([0.0], [0.0]), pair([chosen_cost], [rejected_cost]))
    scored = SafeDPO(beta=0.5, offset=10.0)(pair([3.0], [1.0]), label, ZERO)
    assert scored.weight.item() == weight
    assert scored.loss.item() == pytest.approx(math.log1p(math.exp(-logit)))


def test_the_offset_lies_outside_beta() -> None:
    label = annotation(pair([0.0], [0.0]), pair([-1.0], [1.0]))
    logratio = pair([100.0], [0.0])  # offset / beta nats of gap bring the loss to log 2
    assert SafeDPO(beta=0.1, offset=10.0)(logratio, label, ZERO).loss.item() == pytest.approx(LOG2)


def test_a_cost_of_exactly_zero_is_safe() -> None:
    label = annotation(pair([0.0], [0.0]), pair([0.0], [0.0]))
    assert SafeDPO()(pair([1.0], [0.0]), label, ZERO).weight.item() == 1


@given(finite, finite, finite, finite, st.floats(0, 5))
def test_soft_constrained_dpo_does_not_care_which_response_stands_first(
    c: float, r: float, reward: float, cost: float, m: float
) -> None:
    label = annotation(pair([reward], [0.0]), pair([cost], [0.0]))
    turned = annotation(pair([0.0], [reward]), pair([0.0], [cost]))
    one = ConstrainedDPO()(pair([c], [r]), label, f64(m)[0]).loss
    two = ConstrainedDPO()(pair([r], [c]), turned, f64(m)[0]).loss
    torch.testing.assert_close(one, two)


@given(finite, finite, st.sampled_from([-1.0, 1.0]), st.sampled_from([-1.0, 1.0]))
def test_safe_dpo_does_not_care_about_the_order_of_a_safe_and_an_unsafe_response(
    c: float, r: float, a: float, b: float
) -> None:
    if a == b:  # the helpful order decides then, and it matters
        return
    label = annotation(pair([0.0], [0.0]), pair([a], [b]))
    turned = annotation(pair([0.0], [0.0]), pair([b], [a]))
    one, two = SafeDPO()(pair([c], [r]), label, ZERO), SafeDPO()(pair([r], [c]), turned, ZERO)
    torch.testing.assert_close(one, two)


@given(finite, finite)
def test_a_decisive_reward_at_zero_multiplier_is_dpo(c: float, r: float) -> None:
    label = annotation(pair([1e3], [-1e3]), pair([5.0], [-5.0]))
    for labels in ("soft", "sampled", "hard"):
        constrained = ConstrainedDPO(labels=labels)(pair([c], [r]), label, ZERO)
        torch.testing.assert_close(constrained.loss, DPO()(pair([c], [r]), label, ZERO).loss)


@given(finite, finite)
def test_safe_pairs_or_no_offset_make_safe_dpo_plain(c: float, r: float) -> None:
    dpo = DPO()(pair([c], [r]), SAFE, ZERO)
    torch.testing.assert_close(SafeDPO(offset=10.0)(pair([c], [r]), SAFE, ZERO), dpo)
    kept = annotation(pair([0.0], [0.0]), pair([-1.0], [1.0]))
    torch.testing.assert_close(SafeDPO(offset=0.0)(pair([c], [r]), kept, ZERO), dpo)


def test_sampled_labels_are_soft_labels_in_expectation() -> None:
    n = 20_000
    label = Annotation(
        Pair(torch.full((n,), 0.7, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)),
        Pair(torch.full((n,), 1.0, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)),
        (torch.arange(n, dtype=torch.float64) + 0.5) / n,  # an exact grid: no sampling error
    )
    logratio = Pair(torch.full((n,), 2.0, dtype=torch.float64), torch.zeros(n, dtype=torch.float64))
    sampled = ConstrainedDPO(labels="sampled")(logratio, label, f64(0.3)[0]).loss.mean()
    soft = ConstrainedDPO()(logratio, label, f64(0.3)[0]).loss.mean()
    assert sampled.item() == pytest.approx(soft.item(), abs=1e-4)


def test_sampled_labels_need_a_draw() -> None:
    with pytest.raises(ValueError, match="draw"):
        ConstrainedDPO(labels="sampled")(pair([1.0], [0.0]), SAFE._replace(draw=None), ZERO)


def test_several_costs_are_summed_under_their_multipliers() -> None:
    one = annotation(pair([2.0], [1.0]), pair([0.2 * 3 + 0.5 * 4], [0.0]))
    several = Annotation(one.reward, Pair(f64(3.0, 4.0)[None], f64(0.0, 0.0)[None]), one.draw)
    logratio = pair([3.0], [1.0])
    got = ConstrainedDPO()(logratio, several, f64(0.2, 0.5))
    torch.testing.assert_close(got, ConstrainedDPO()(logratio, one, f64(1.0)[0]))


def test_a_response_is_unsafe_where_any_of_its_costs_is_positive() -> None:
    label = Annotation(pair([0.0], [0.0]), Pair(f64(-1.0, 2.0)[None], f64(-1.0, 0.0)[None]))
    assert label.unsafe.chosen.tolist() == [True]
    assert label.unsafe.rejected.tolist() == [False]


def test_the_likelihood_does_not_clamp_a_target_above_one() -> None:
    # robust DPO's target 1.125 at flip rate .1: p l(z) + (1 - p) l(-z)
    expected = 1.125 * math.log1p(math.exp(-2)) - 0.125 * math.log1p(math.exp(2))
    assert nll(f64(2.0), 1.125).item() == pytest.approx(expected)


def test_the_likelihood_matches_its_definition_in_float64() -> None:
    z, p = torch.linspace(-30, 30, 61, dtype=torch.float64), 0.3
    direct = -p * torch.log(torch.sigmoid(z)) - (1 - p) * torch.log(torch.sigmoid(-z))
    torch.testing.assert_close(nll(z, p), direct, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("build", "word"),
    [
        (lambda: DPO(beta=0.0), "beta"),
        (lambda: DPO(label_smoothing=0.5), "label_smoothing"),
        (lambda: ConstrainedDPO(beta=-1.0), "beta"),
        (lambda: ConstrainedDPO(labels="soft-ish"), "labels"),
        (lambda: SafeDPO(offset=-1.0), "offset"),
        (lambda: SafeDPO(beta=float("nan")), "beta"),
    ],
)
def test_an_argument_out_of_range_is_named(build: object, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        build()  # type: ignore[operator]


@given(finite, finite, st.floats(-5, 5))
def test_soft_safe_dpo_is_the_ordered_loss_in_expectation_over_the_drawn_order(c: float, r: float, gain: float) -> None:
    cost = pair([-1.0], [-1.0])
    soft = SafeDPO(labels="soft")(pair([c], [r]), annotation(pair([gain], [0.0]), cost), ZERO).loss
    kept = SafeDPO()(pair([c], [r]), annotation(pair([gain], [0.0]), cost), ZERO).loss
    turned = SafeDPO()(pair([r], [c]), annotation(pair([0.0], [gain]), cost), ZERO).loss
    chance = 1 / (1 + math.exp(-gain))
    torch.testing.assert_close(soft, chance * kept + (1 - chance) * turned)


@pytest.mark.parametrize("costs", [(1.0, -1.0), (-1.0, 1.0), (1.0, 1.0)])
def test_soft_safe_dpo_softens_no_pair_with_an_unsafe_response(costs: tuple[float, float]) -> None:
    label = annotation(pair([math.nan], [0.0]), pair([costs[0]], [costs[1]]))
    both = [SafeDPO(labels=labels)(pair([3.0], [1.0]), label, ZERO) for labels in ("ordered", "soft")]
    torch.testing.assert_close(both[0], both[1])
    assert SafeDPO(labels="soft").needs == ("reward", "flags")
