import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_safe.statistics import Estimate, clustered_mean, paired_difference
from tests.lit_safe.coverage import coverage, worlds

samples = st.lists(st.tuples(st.floats(-10, 10), st.integers(0, 5)), min_size=2, max_size=30)


def test_two_prompts_of_two_pairs_worked_by_hand():
    # mean 0.5; prompt a adds (0.5 + 0.5) / 4, prompt b the opposite: sqrt(2 / 1 * (1/16 + 1/16)) = 0.5
    estimate = clustered_mean([1, 1, 0, 0], [7, 7, 9, 9])
    assert estimate == Estimate(0.5, 0.5, 4, 2)
    # t with 1 degree of freedom: 12.706
    assert estimate.interval == pytest.approx((0.5 - 6.353, 0.5 + 6.353), abs=1e-3)


def test_pairs_that_differ_within_prompts_alone_have_no_error_between_prompts():
    assert clustered_mean([1, 0, 1, 0], [7, 7, 9, 9]).stderr == 0


def test_one_pair_a_prompt_gives_the_textbook_error():
    value = np.random.default_rng(0).normal(size=50)
    assert clustered_mean(value, np.arange(50)).stderr == pytest.approx(value.std(ddof=1) / math.sqrt(50), rel=1e-12)


@given(samples)
def test_repeating_every_pair_of_a_prompt_teaches_nothing(rows):
    value, prompt = np.array([v for v, _ in rows]), np.array([p for _, p in rows])
    once, thrice = clustered_mean(value, prompt), clustered_mean(np.tile(value, 3), np.tile(prompt, 3))
    assert thrice.mean == pytest.approx(once.mean, abs=1e-9)
    assert thrice.stderr == pytest.approx(once.stderr, abs=1e-9, nan_ok=True)


@given(samples, st.floats(0.1, 5), st.floats(-5, 5))
def test_errors_follow_units_and_ignore_order_and_names(rows, scale, shift):
    value, prompt = np.array([v for v, _ in rows]), np.array([p for _, p in rows])
    base = clustered_mean(value, prompt)
    other = clustered_mean((scale * value + shift)[::-1], 100 - prompt[::-1])
    assert other.mean == pytest.approx(scale * base.mean + shift, abs=1e-8)
    assert other.stderr == pytest.approx(scale * base.stderr, abs=1e-8, nan_ok=True)


def test_a_weight_of_two_is_a_sample_twice():
    weighted = clustered_mean([1.0, 4.0, 2.0], [0, 1, 1], [2, 1, 1])
    repeated = clustered_mean([1.0, 1.0, 4.0, 2.0], [0, 0, 1, 1])
    assert weighted[:2] == pytest.approx(repeated[:2])


def test_a_ratio_of_sums_is_the_weighted_mean_of_ratios():
    kl, tokens = np.array([3.0, 10.0, 2.0]), np.array([3.0, 5.0, 4.0])
    assert clustered_mean(kl / tokens, [0, 1, 2], tokens).mean == pytest.approx(15 / 12)


def test_a_shift_of_every_sample_is_known_exactly_however_they_vary():
    value = np.random.default_rng(1).normal(size=20)
    difference = paired_difference(value + 0.25, value, np.arange(20) // 2)
    assert difference.mean == pytest.approx(0.25)
    assert difference.stderr == pytest.approx(0, abs=1e-12)
    assert difference.verdict == "cannot be told"
    assert all(map(math.isnan, difference.interval))


def test_a_paired_difference_is_the_mean_of_differences():
    generator = np.random.default_rng(2)
    after, before, prompt = generator.normal(size=30), generator.normal(size=30), generator.integers(0, 8, 30)
    assert paired_difference(after, before, prompt)[:2] == pytest.approx(clustered_mean(after - before, prompt)[:2])


def test_a_sample_unknown_on_one_side_counts_on_neither():
    known = paired_difference([1.0, 2.0], [0.0, 3.0], [0, 1])
    assert paired_difference([1.0, 2.0, math.nan, 5.0], [0.0, 3.0, 1.0, math.nan], [0, 1, 2, 3]) == known


def test_one_prompt_has_a_mean_but_no_error_and_nothing_is_claimed_of_it():
    estimate = clustered_mean([1.0, 2.0], [5, 5])
    assert estimate.mean == 1.5
    assert math.isnan(estimate.stderr)
    assert all(map(math.isnan, estimate.interval))
    assert estimate.verdict == "too few prompts to say"
    assert math.isnan(clustered_mean([], []).mean)


def test_verdicts_claim_what_the_interval_allows():
    assert Estimate(-1.0, 0.1, 9, 9).verdict == "lower"
    assert Estimate(0.1, 0.1, 9, 9).verdict == "no measurable change"


def test_the_interval_covers_the_truth_95_times_in_100_where_a_naive_one_does_not():
    """Thirty prompts of one to six pairs, whose prompts differ more than pairs within one."""
    generator = np.random.default_rng(3)
    covered = naive = 0
    trials = 2000
    for _ in range(trials):
        prompt = np.repeat(np.arange(30), generator.integers(1, 7, 30))
        value = generator.normal(size=30)[prompt] + 0.5 * generator.normal(size=len(prompt))
        estimate = clustered_mean(value, prompt)
        low, high = estimate.interval
        covered += low <= 0 <= high
        naive += abs(value.mean()) <= 1.98 * value.std(ddof=1) / math.sqrt(len(value))
    assert 0.92 < covered / trials < 0.965
    assert naive / trials < 0.8


def test_what_cannot_be_paired_or_weighted_is_refused():
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_difference([1.0], [1.0, 2.0], [0, 1])
    with pytest.raises(ValueError, match=r"\[n\] expected"):
        clustered_mean([1.0, 2.0], [0])
    with pytest.raises(ValueError, match="negative"):
        clustered_mean([1.0, 2.0], [0, 1], [1, -1])


def test_a_share_of_none_or_all_has_an_interval_with_width():
    low, high = clustered_mean(np.zeros(48), np.arange(48), share=True).interval
    assert low == 0
    assert high == pytest.approx(1 - 0.025 ** (1 / 48))  # Clopper & Pearson 1934, no hit of 48
    assert clustered_mean(np.ones(48), np.arange(48), share=True).interval == pytest.approx((1 - high, 1))
    repeated = clustered_mean(np.zeros(480), np.arange(480) // 10, share=True).interval
    assert repeated[1] > 0.9 * high


@pytest.mark.parametrize("change", [0.0, 1.0])
def test_nothing_is_claimed_of_differences_that_do_not_vary(change):
    shares = paired_difference(np.full(48, change), np.zeros(48), np.arange(48), share=True)
    assert shares.interval[0] < shares.interval[1]
    assert shares.verdict == "cannot be told"
    assert paired_difference(np.full(48, change), np.zeros(48), np.arange(48)).verdict == "cannot be told"


def test_a_side_without_weight_has_no_difference():
    assert paired_difference([1.0, 2.0], [1.0, 2.0], [0, 1], [1, 1], [0, 0]).count == 0


def test_a_share_outside_0_to_1_is_refused():
    with pytest.raises(ValueError, match=r"values in \[0, 1\]"):
        clustered_mean([0.0, 2.0], [0, 1], share=True)


@pytest.mark.parametrize(("name", "truth", "world"), [w for w in worlds() if "300" not in w[0]])
def test_every_interval_of_a_report_covers_the_truth(name, truth, world):
    assert coverage(world, truth, 2000)[0] >= 0.93, name
