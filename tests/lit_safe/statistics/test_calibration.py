"""Calibration: slope and intercept, and the error of probabilities."""

import numpy as np
import pytest
from scipy.special import expit

from lit_safe.statistics.calibration import cross_fitted, fit_log_odds, reliability


def labelled(count: int, slope: float, intercept: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    score = random.normal(size=count)
    return score, random.random(count) < expit(slope * score + intercept)


def beside_one(score: np.ndarray) -> np.ndarray:
    return np.stack([score, np.ones(len(score))], 1)


def test_slope_and_intercept_are_those_that_made_the_labels() -> None:
    score, label = labelled(40_000, 2.0, -1.0)
    slope, intercept = fit_log_odds(beside_one(score), label)
    assert slope == pytest.approx(2.0, abs=0.08)
    assert intercept == pytest.approx(-1.0, abs=0.06)


def test_an_intercept_alone_gives_the_share_with_one_more_of_each() -> None:
    # of 3 positive and 1 negative label, Platt's targets are 4/5 and 1/3: their mean is 41/60
    (intercept,) = fit_log_odds(np.ones((4, 1)), [True, True, True, False])
    assert expit(intercept) == pytest.approx((3 * 4 / 5 + 1 / 3) / 4, abs=1e-7)


def test_a_score_that_separates_the_labels_keeps_a_finite_slope() -> None:
    slope, _ = fit_log_odds(beside_one(np.array([-1.0, -1, 1, 1])), [False, False, True, True])
    assert slope == pytest.approx(np.log(3), abs=1e-6)  # of targets 3/4 and 1/4 at +-1


def test_the_scale_of_a_score_does_not_matter() -> None:
    score, label = labelled(200, 1.0, 0.5)
    small, large = (beside_one(factor * score) for factor in (1e-6, 1e6))
    ours, theirs = (columns @ fit_log_odds(columns, label) for columns in (small, large))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_one_label_or_a_broken_score_calibrates_nothing() -> None:
    with pytest.raises(ValueError, match="got 2 and 0"):
        fit_log_odds(np.ones((2, 1)), [True, True])
    with pytest.raises(ValueError, match="finite"):
        fit_log_odds(np.array([[np.nan], [1.0]]), [True, False])


def test_cross_fitting_never_uses_a_samples_own_cluster() -> None:
    score, label = labelled(400, 1.0, 0.0)
    cluster = np.arange(400) // 4
    before = cross_fitted(beside_one(score), label, cluster)
    flipped = label.copy()
    flipped[cluster == 7] ^= True
    after = cross_fitted(beside_one(score), flipped, cluster)
    np.testing.assert_array_equal(before[cluster == 7], after[cluster == 7])
    assert (before != after).any()


def test_predictions_that_are_off_by_a_fifth_have_an_error_of_a_fifth() -> None:
    predicted = np.repeat(0.7, 1000)
    label = np.arange(1000) % 2 == 0
    found = reliability(predicted, label, np.arange(1000))
    assert found.error == pytest.approx(0.2, abs=1e-9)
    assert found.low < 0.2 < found.high
    assert sum(one.count for one in found.bins) == 1000


def test_perfect_probabilities_have_the_error_of_chance() -> None:
    found = []
    for seed in range(20):
        score, label = labelled(500, 2.0, 0.0, seed)
        found.append(reliability(expit(2 * score), label, np.arange(500)))
    assert np.mean([one.error for one in found]) == pytest.approx(np.mean([one.by_chance for one in found]), abs=0.01)
    assert found[0].by_chance > 0.02


def test_clusters_of_copies_widen_the_interval() -> None:
    score, label = labelled(200, 0.0, 0.0)
    alone = reliability(np.repeat(expit(score), 8), np.repeat(label, 8), np.arange(1600))
    copies = reliability(np.repeat(expit(score), 8), np.repeat(label, 8), np.repeat(np.arange(200), 8))
    assert copies.error == alone.error
    assert copies.high - copies.low > 2 * (alone.high - alone.low)


@pytest.mark.parametrize("wrong", [[], [1.5], [np.nan]])
def test_what_is_no_probability_is_refused(wrong: list[float]) -> None:
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        reliability(wrong, [True] * len(wrong), list(range(len(wrong))))
