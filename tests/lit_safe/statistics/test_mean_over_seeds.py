"""Means over seeds: how wide their intervals are, where the answer is known."""

import math

import numpy as np
import pytest

from lit_safe.statistics.seeds import mean_over_seeds


def test_equal_seeds_leave_the_variation_of_prompts():
    prompts = np.random.default_rng(0).normal(size=60)
    found = mean_over_seeds([prompts] * 4)
    assert found.mean == pytest.approx(prompts.mean())
    assert found.stderr == pytest.approx(prompts.std(ddof=1) / math.sqrt(60), rel=0.05)


def test_equal_prompts_leave_the_variation_of_seeds():
    seeds = np.array([0.1, 0.4, 0.5, 0.9])
    found = mean_over_seeds(np.repeat(seeds[:, None], 50, 1))
    assert found.stderr == pytest.approx(seeds.std(ddof=1) / 2, rel=0.05)
    assert found.bounds[0] < found.mean < found.bounds[1]


def test_the_interval_covers_the_mean_of_new_seeds_and_prompts():
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(60):
        value = rng.normal(size=(6, 1)) + rng.normal(size=(1, 40)) + rng.normal(size=(6, 40))
        low, high = mean_over_seeds(value).bounds
        inside += low <= 0 <= high
    assert inside >= 48  # 95 % wanted; six seeds give a little less


def test_one_seed_has_no_interval_and_unknown_values_are_refused():
    found = mean_over_seeds([[0.5, 1.0]])
    assert (found.mean, found.count, found.clusters) == (0.75, 1, 2)
    assert math.isnan(found.stderr)
    with pytest.raises(ValueError, match="must be finite and not empty"):
        mean_over_seeds([[math.nan]])
