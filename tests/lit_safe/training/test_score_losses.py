"""The losses of score models, in float64, against their equations and by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lit_safe.training.score_losses import CostLoss, RewardLoss, ranking_loss, sign_loss
from lit_safe.types import Pair

NUMBER = st.floats(-30, 30)


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def nll(x: float) -> float:
    """-log sigma(x), as the papers write it."""
    return -math.log(1 / (1 + math.exp(-x)))


@given(NUMBER, NUMBER)
def test_the_ranking_loss_is_its_equation(higher: float, lower: float) -> None:
    assert ranking_loss(column(higher), column(lower)).item() == pytest.approx(nll(higher - lower), rel=1e-9, abs=1e-12)


@given(NUMBER, st.booleans())
def test_the_sign_loss_is_its_equation_and_binary_cross_entropy(cost: float, unsafe: bool) -> None:
    found = sign_loss(column(cost), torch.tensor([unsafe]))
    assert found.item() == pytest.approx(nll(cost if unsafe else -cost), rel=1e-9, abs=1e-12)
    library = torch.nn.functional.binary_cross_entropy_with_logits(column(cost), column(float(unsafe)))
    torch.testing.assert_close(found[0], library, rtol=1e-9, atol=1e-12)


def test_a_reward_pair_by_hand() -> None:
    # chosen scores 2, rejected 1; the label says first that chosen is better, then that rejected is
    score = Pair(column(2, 2), column(1, 1))
    loss, weight = RewardLoss(magnitude=0.5)(score, Pair(column(0.5, -0.5), column(-0.5, 0.5)))
    torch.testing.assert_close(loss, column(nll(1) + 0.5 * 2.5, nll(-1) + 0.5 * 2.5), rtol=1e-12, atol=0)
    assert weight.tolist() == [1, 1]


def test_a_cost_pair_by_hand() -> None:
    # chosen is safe with predicted cost -1, rejected is unsafe with predicted cost 3: ranking 4, signs 1 and 3
    score, label = Pair(column(-1), column(3)), Pair(column(-1), column(1))
    loss, weight = CostLoss(magnitude=0.001)(score, label)
    assert loss.item() == pytest.approx(nll(4) + nll(1) + nll(3) + 0.001 * 5, rel=1e-12)
    assert weight.item() == 1


@pytest.mark.parametrize(
    ("chosen", "rejected", "terms", "weight"),
    [
        (1.0, 1.0, nll(2) + nll(-1), 1),  # both unsafe: no ranking, two signs
        (math.nan, 1.0, nll(-1), 1),  # one label: one sign
        (math.nan, math.nan, 0.0, 0),
    ],
)
def test_a_cost_term_without_its_label_is_left_out(chosen: float, rejected: float, terms: float, weight: float) -> None:
    score = Pair(column(2).requires_grad_(), column(-1).requires_grad_())
    found = CostLoss(magnitude=0.0)(score, Pair(column(chosen), column(rejected)))
    assert found.loss.item() == pytest.approx(terms, abs=1e-12)
    assert found.weight.item() == weight
    gradient = torch.autograd.grad(found.loss.sum(), list(score))
    assert all(side.isfinite().all() for side in gradient)


def test_the_order_of_safer_data_ranks_pairs_of_equal_labels_and_no_others() -> None:
    score = Pair(column(2, 2), column(-1, -1))
    label = Pair(column(1, 1), column(1, -1))  # the second pair's labels contradict the order and decide
    loss = CostLoss(sign=0.0, magnitude=0.0)(score, label, chosen_is_safer=True).loss
    torch.testing.assert_close(loss, column(nll(-3), nll(3)), rtol=1e-12, atol=0)


def test_pointwise_labels_alone_have_no_ranking() -> None:
    score, label = Pair(column(5, 5), column(5, 5)), Pair(column(1, 1), column(1, -1))
    loss = CostLoss(ranking=0.0, magnitude=0.0)(score, label).loss
    torch.testing.assert_close(loss, column(2 * nll(5), nll(5) + nll(-5)), rtol=1e-9, atol=0)


@given(NUMBER, NUMBER, st.sampled_from([-1.0, 1.0]), st.sampled_from([-1.0, 1.0]))
def test_a_pair_costs_the_same_in_either_order(one: float, two: float, first: float, second: float) -> None:
    loss = CostLoss()
    forward = loss(Pair(column(one), column(two)), Pair(column(first), column(second)))
    backward = loss(Pair(column(two), column(one)), Pair(column(second), column(first)))
    torch.testing.assert_close(forward.loss, backward.loss, rtol=1e-12, atol=0)


def test_unknown_preferences_train_nothing() -> None:
    score = Pair(column(1, 1).requires_grad_(), column(0, 0).requires_grad_())
    found = RewardLoss(magnitude=0.0)(score, Pair(column(math.nan, 1), column(math.nan, 1)))
    assert found.weight.tolist() == [0, 0]
    assert not torch.stack(torch.autograd.grad(found.loss.sum(), list(score))).any()


def test_weights_that_train_nothing_or_in_reverse_are_refused() -> None:
    with pytest.raises(ValueError, match="ranking and sign are both 0"):
        CostLoss(ranking=0.0, sign=0.0)
    with pytest.raises(ValueError, match="sign must be a number >= 0, got -1"):
        CostLoss(sign=-1.0)
    with pytest.raises(ValueError, match="magnitude must be a number >= 0, got nan"):
        RewardLoss(magnitude=math.nan)
