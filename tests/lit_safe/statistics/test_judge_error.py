"""Shares corrected by a judge's rates: the textbook's formula, limits, and how often the interval holds the truth."""

import math

import numpy as np
import pytest

from lit_safe.statistics.agreement import agreement
from lit_safe.statistics.clustered import Estimate, clustered_mean, paired_difference
from lit_safe.statistics.judge_error import JudgeError, corrected_by_error, corrected_difference


def exact(hits: float, false_alarms: float) -> JudgeError:
    """Rates without an error of their own."""
    return JudgeError(hits, (hits, hits), 500, false_alarms, (false_alarms, false_alarms), 500)


def share(mean: float, low: float, high: float) -> Estimate:
    return Estimate(mean, 0.05, 100, 100, (low, high))


def rates_of(verdict: np.ndarray, people: np.ndarray) -> JudgeError:
    found = agreement(verdict, people, np.arange(len(people)))
    hits, alarms = found.hits, found.false_alarms
    return JudgeError(hits.mean, hits.bounds, hits.count, alarms.mean, alarms.bounds, alarms.count)


def test_the_formula_of_rogan_and_gladen_by_hand() -> None:
    # 46 % flagged by a judge with sensitivity 0.9 and specificity 0.8: (0.46 + 0.8 - 1) / (0.9 + 0.8 - 1)
    found = corrected_by_error(share(0.46, 0.41, 0.53), exact(0.9, 0.2))
    assert found.mean == pytest.approx(0.26 / 0.7, abs=1e-12)
    assert found.bounds == pytest.approx((0.21 / 0.7, 0.33 / 0.7), abs=1e-9)
    change = corrected_difference(share(-0.14, -0.21, -0.07), exact(0.9, 0.2))
    assert change.mean == pytest.approx(-0.2, abs=1e-12)
    assert change.bounds == pytest.approx((-0.3, -0.1), abs=1e-9)


def test_a_judge_like_people_leaves_share_and_interval_as_they_are() -> None:
    raw = share(0.3, 0.2, 0.42)
    found = corrected_by_error(raw, exact(1.0, 0.0))
    assert (found.mean, *found.bounds) == pytest.approx((raw.mean, *raw.bounds), abs=1e-9)
    few = JudgeError(1.0, (0.83, 1.0), 20, 0.0, (0.0, 0.17), 20)
    wide = corrected_by_error(raw, few)
    assert wide.mean == pytest.approx(0.3)
    assert wide.bounds[0] < raw.bounds[0]
    assert wide.bounds[1] > raw.bounds[1], "20 labels of each kind do not show that a judge never errs"


def test_a_judge_that_says_the_reverse_of_the_question_gives_the_rest_of_the_share() -> None:
    """``complied`` is not ``refused``: hits and false alarms change places, and so do the ends."""
    error = JudgeError(0.85, (0.8, 0.9), 200, 0.1, (0.05, 0.16), 200)
    turned = JudgeError(0.9, (0.84, 0.95), 200, 0.15, (0.1, 0.2), 200)
    one = corrected_by_error(share(0.3, 0.2, 0.42), error)
    other = corrected_by_error(share(0.7, 0.58, 0.8), turned)
    assert (1 - other.mean, 1 - other.bounds[1], 1 - other.bounds[0]) == pytest.approx((one.mean, *one.bounds))


def test_a_useless_judge_is_refused_in_one_line() -> None:
    chance = JudgeError(0.5, (0.4, 0.6), 90, 0.45, (0.36, 0.54), 110)
    for correct in (corrected_by_error, corrected_difference):
        with pytest.raises(ValueError, match=r"0\.500 of 90 positives and 0\.450 of 110 negatives") as found:
            correct(share(0.3, 0.2, 0.4), chance)
        assert "\n" not in str(found.value)
    with pytest.raises(ValueError, match="not told apart"):
        corrected_by_error(share(0.3, 0.2, 0.4), exact(0.2, 0.6))


def test_shares_stay_in_their_range_and_an_unknown_interval_stays_unknown() -> None:
    error = JudgeError(0.9, (0.85, 0.94), 200, 0.1, (0.06, 0.15), 200)
    none, all_of_them = corrected_by_error(share(0.02, 0.0, 0.07), error), corrected_by_error(share(1, 0.96, 1), error)
    assert (none.mean, none.bounds[0], all_of_them.mean, all_of_them.bounds[1]) == (0, 0, 1, 1)
    assert none.bounds[1] < 0.1
    unknown = corrected_by_error(Estimate(0.4, math.nan, 1, 1), error)
    assert unknown.mean == pytest.approx(0.375)
    assert math.isnan(unknown.bounds[0])
    assert corrected_difference(share(0.95, 0.9, 1.0), error).bounds[1] == 1


@pytest.mark.parametrize(("truth", "hits", "alarms", "labels"), [(0.2, 0.7, 0.1, 300), (0.03, 0.9, 0.05, 100)])
def test_the_interval_holds_what_people_would_find(truth: float, hits: float, alarms: float, labels: int) -> None:
    """400 responses, and as many labels of other responses as stated, a third of them positive. At least 93 % hold."""
    generator, held, changes = np.random.default_rng(1), 0, 0
    draws = 150
    for _ in range(draws):
        people = generator.random(labels) < 1 / 3
        error = rates_of(np.where(people, generator.random(labels) < hits, generator.random(labels) < alarms), people)
        before, after = generator.random(400) < truth + 0.1, generator.random(400) < truth
        flags = [np.where(y, generator.random(400) < hits, generator.random(400) < alarms) for y in (before, after)]
        low, high = corrected_by_error(clustered_mean(flags[1], np.arange(400), share=True), error).bounds
        held += low <= truth <= high
        change = paired_difference(1.0 * flags[1], 1.0 * flags[0], np.arange(400), share=True)
        low, high = corrected_difference(change, error).bounds
        changes += low <= -0.1 <= high
    assert min(held, changes) >= 0.93 * draws
