import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_safe.statistics.clustered import Estimate, clustered_mean, paired_difference
from tests.lit_safe.statistics.coverage import coverage, worlds

samples = st.lists(st.tuples(st.floats(-10, 10), st.integers(0, 5)), min_size=2, max_size=30)


def test_two_prompts_of_two_pairs_worked_by_hand():
    # mean 0.5; prompt a adds (0.5 + 0.5) / 4, prompt b the opposite: sqrt(2 / 1 * (1/16 + 1/16)) = 0.5
    estimate = clustered_mean([1, 1, 0, 0], [7, 7, 9, 9])
    assert estimate[:4] == (0.5, 0.5, 4, 2)


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
    assert paired_difference([1.0, 2.0, math.nan, 5.0], [0.0, 3.0, 1.0, math.nan], [0, 1, 2, 3])[:4] == known[:4]


def test_one_prompt_has_a_mean_but_no_error_and_nothing_is_claimed_of_it():
    estimate = clustered_mean([1.0, 2.0], [5, 5])
    assert estimate.mean == 1.5
    assert math.isnan(estimate.stderr)
    assert all(map(math.isnan, estimate.interval))
    assert estimate.verdict == "too few prompts to say"
    assert math.isnan(clustered_mean([], []).mean)


def test_verdicts_claim_what_the_interval_allows():
    assert Estimate(-1.0, 0.1, 9, 9, (-1.2, -0.8)).verdict == "lower"
    assert Estimate(0.1, 0.1, 9, 9, (-0.1, 0.3)).verdict == "no measurable change"
    assert Estimate(0.1, 0.1, 9, 9).verdict == "cannot be told"


@pytest.mark.parametrize("prompts", [2, 3, 5])
def test_a_mean_of_few_prompts_has_no_interval_and_no_verdict(prompts):
    value = np.random.default_rng(prompts).normal(5, 1, 4 * prompts)
    for estimate in (
        clustered_mean(value, np.arange(4 * prompts) % prompts),
        paired_difference(value, np.zeros_like(value), np.arange(4 * prompts) % prompts),
    ):
        assert all(map(math.isnan, estimate.interval))
        assert estimate.verdict == "too few prompts to say"


def test_the_interval_of_a_skewed_mean_reaches_further_towards_the_long_tail():
    value = np.random.default_rng(0).lognormal(size=20)
    estimate = clustered_mean(value, np.arange(20))
    low, high = estimate.interval
    assert high - estimate.mean > 1.5 * (estimate.mean - low) > 0
    mirrored = clustered_mean(-value, np.arange(20)).interval
    assert mirrored == pytest.approx((-high, -low))


def test_an_interval_that_one_prompt_decides_has_no_bound_on_its_side_rather_than_a_number_from_rounding():
    # 20 responses of 8 tokens but one: a resample without it has no error but rounding's
    value = np.full(20, 8.0)
    value[3] = 1.0
    low, high = clustered_mean(value, np.arange(20)).interval
    assert low == -math.inf
    assert value.mean() < high < 10


def test_intervals_follow_units_and_are_the_same_on_every_call():
    value = np.random.default_rng(0).lognormal(size=40)
    once = clustered_mean(value, np.arange(40) // 2)
    assert clustered_mean(value, np.arange(40) // 2) == once
    scaled = clustered_mean(3 * value + 100, np.arange(40) // 2).interval
    assert scaled == pytest.approx(tuple(3 * end + 100 for end in once.interval))


def test_a_difference_of_ratios_under_equal_weights_is_the_ratio_of_differences():
    generator = np.random.default_rng(5)
    after, before, weight = generator.normal(size=30), generator.normal(size=30), generator.integers(1, 9, 30)
    one = paired_difference(after, before, np.arange(30) // 2, weight, weight)
    other = clustered_mean(after - before, np.arange(30) // 2, weight)
    assert one.interval == pytest.approx(other.interval)
    nearly = weight * (1 + 1e-9 * generator.random(30))  # two denominators that are all but one
    assert paired_difference(after, before, np.arange(30) // 2, weight, nearly).interval == pytest.approx(
        other.interval, rel=1e-5
    )


def test_rounding_alone_is_no_difference():
    before = np.random.default_rng(1).normal(-80, 20, 40)
    after = before + 1e-14 * np.random.default_rng(2).normal(size=40)
    difference = paired_difference(after, before, np.arange(40))
    assert difference.verdict == "cannot be told"
    assert all(map(math.isnan, difference.interval))


def test_a_sample_without_weight_is_no_sample():
    with_it = clustered_mean([1.0, 2.0, 9.0], [0, 1, 2], [1, 1, 0])
    assert with_it[:4] == clustered_mean([1.0, 2.0], [0, 1])[:4]
    assert with_it.clusters == 2


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


@pytest.mark.parametrize(("change", "verdict"), [(0.0, "cannot be told"), (1.0, "higher")])
def test_of_differences_that_do_not_vary_only_an_exact_interval_claims_a_sign(change, verdict):
    shares = paired_difference(np.full(48, change), np.zeros(48), np.arange(48), share=True)
    assert shares.interval[0] < shares.interval[1]
    assert shares.verdict == verdict
    assert paired_difference(np.full(48, change), np.zeros(48), np.arange(48)).verdict == "cannot be told"


def test_a_side_without_weight_has_no_difference():
    assert paired_difference([1.0, 2.0], [1.0, 2.0], [0, 1], [1, 1], [0, 0]).count == 0


def test_a_share_outside_0_to_1_is_refused():
    with pytest.raises(ValueError, match=r"values in \[0, 1\]"):
        clustered_mean([0.0, 2.0], [0, 1], share=True)


CHEAP = [pytest.param(world, id=world.name) for world in worlds() if world.cheap]
SLOW = [pytest.param(world, id=world.name, marks=pytest.mark.slow) for world in worlds() if not world.cheap]


@pytest.mark.parametrize("world", CHEAP + SLOW)
def test_every_interval_that_is_printed_covers_the_truth(world):
    found = coverage(world, 2000, seed=1)
    assert found.share >= 0.93
    assert found.upper >= 0.935  # of a bound with one side, nominally 95 %
