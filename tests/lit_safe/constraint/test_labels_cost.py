"""The probability of unsafe from labels alone, by hand, and what it says of a solved world."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lit_safe.constraint.costs.labels import LabelledUnsafe, _weights
from lit_safe.constraint.dual_ascent import DualAscent
from tests.lit_safe.dual_world import COST, P, Table, Toy, all_pairs, optimum


def estimate(costs: Any = COST, logit: Any = None, **options: Any) -> Any:
    pair = Table()
    if logit is not None:
        pair.logit_PK.data.copy_(logit)
    return LabelledUnsafe(**options)(SimpleNamespace(pair=pair), Toy(costs_PKC=costs), seed=0, epoch=0)


def test_weights_of_two_prompts_by_hand() -> None:
    logratio_n = torch.tensor(
        [math.log(3), 0.0, 700.0, 700.0], dtype=torch.float64
    )  # exp(700) alone would overflow soon
    weight_n, sizes_G = _weights(logratio_n, torch.tensor([7, 7, 5, 5]))
    assert weight_n.tolist() == pytest.approx([0.75, 0.25, 0.5, 0.5])
    assert sizes_G.tolist() == pytest.approx([2.0, 1 / (0.75**2 + 0.25**2)])


def test_before_training_it_is_the_share_of_unsafe_labels() -> None:
    found = estimate()
    assert found.mean.item() == pytest.approx(float((COST > 0).double().mean()))
    assert found.effective == pytest.approx(found.count)
    assert found.clusters == P


def test_a_policy_that_prefers_safe_responses_has_a_smaller_probability_and_effective_size() -> None:
    before, after = estimate(), estimate(logit=optimum(3.0).float())
    assert after.mean < before.mean
    assert after.effective < before.effective
    logratio_PK = optimum(3.0) - Table().reference_PK.double().log_softmax(-1)
    exact = (logratio_PK.softmax(-1) * (COST > 0)).sum(-1).mean()  # each response is in as many pairs as the others
    assert after.mean.item() == pytest.approx(float(exact), abs=1e-5)


def test_probabilities_are_taken_as_they_are_and_several_constraints_stand_side_by_side() -> None:
    probability_PK = COST.sigmoid()
    assert estimate(probability_PK, labels="probability").mean.item() == pytest.approx(float(probability_PK.mean()))
    both = estimate(torch.stack([COST, -COST], -1))
    assert both.mean.tolist() == pytest.approx([float((COST > 0).double().mean()), float((COST < 0).double().mean())])
    assert both.bounds.shape == (2, 2)


def test_equal_labels_have_no_error_but_bounds_within_0_and_1() -> None:
    found = estimate(-COST.abs() - 0.1)
    assert found.mean == 0
    assert found.stderr.isnan()
    assert found.bounds[0] == 0
    assert 0 < found.bounds[1] <= 1


def test_a_cost_that_is_no_probability_and_a_missing_label_are_named() -> None:
    with pytest.raises(ValueError, match=r"labels: probability needs costs in \[0, 1\], and one is 1\.16"):
        LabelledUnsafe("probability").check(Toy(), 1)
    LabelledUnsafe("flags").check(Toy(), 1)
    missing = COST.clone()
    missing[0, 0] = math.nan
    with pytest.raises(ValueError, match="pair 0 of the dual split has a response without a finite cost"):
        estimate(missing)
    with pytest.raises(ValueError, match="labels must be one of"):
        LabelledUnsafe("flag")


def test_it_moves_the_multiplier_like_any_estimator() -> None:
    found = estimate()
    dual = DualAscent(lr=1.0, limit=0.1, estimator=LabelledUnsafe())
    after = dual.controller.step(torch.tensor(0.0), found, dual.limit, 0, None)
    assert after.item() == pytest.approx(found.mean.item() - 0.1)


def test_filler_rows_count_for_nothing() -> None:
    batch = all_pairs()
    batch = batch._replace(present=torch.arange(len(batch.present)) % 2 == 0)
    data = SimpleNamespace(dual_pairs=lambda: [batch])
    found = LabelledUnsafe()(SimpleNamespace(pair=Table()), data, seed=0, epoch=0)
    assert found.count == 2 * int(batch.present.sum())
