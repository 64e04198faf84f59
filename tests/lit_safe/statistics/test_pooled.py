"""Means over seeds and prompts: their variance by hand, in the limits, and the coverage of the interval."""

import math

import numpy as np
import pytest
from scipy.stats import t as student

from lit_safe.statistics.pooled import Pooled, over_seeds


def test_the_two_parts_of_the_variance_by_hand() -> None:
    found = over_seeds([[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]])  # seeds' means 2 and 4, prompts' means 2, 3 and 4
    assert found.mean == 3
    assert found.of_seeds == pytest.approx(2 / 2)
    assert found.of_prompts == pytest.approx(1 / 3)
    half = math.hypot(student.ppf(0.975, 1) * 1, student.ppf(0.975, 2) * math.sqrt(1 / 3))
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half))


def test_seeds_that_agree_leave_the_interval_of_the_prompts_and_the_reverse() -> None:
    row = np.array([0.0, 1.0, 2.0, 4.0])
    agreed = over_seeds([row, row, row])
    assert agreed.high - agreed.mean == pytest.approx(student.ppf(0.975, 3) * row.std(ddof=1) / 2)
    flat = over_seeds([[1.0] * 50, [2.0] * 50])
    assert flat.high - flat.mean == pytest.approx(student.ppf(0.975, 1) * 0.5)


def test_one_seed_gives_the_interval_of_its_prompts_and_says_nothing_of_seeds() -> None:
    found = over_seeds([[0.0, 1.0, 2.0, 4.0]])
    assert math.isnan(found.of_seeds)
    assert found.known


def test_what_never_differs_has_no_interval_and_a_constant_difference_has_a_point() -> None:
    assert not over_seeds(np.zeros((2, 9))).known
    assert not over_seeds([[3.0]]).known
    constant = over_seeds(np.ones((2, 9)))
    assert (constant.low, constant.high) == (1, 1)
    assert constant.enough() == (None, None)


def half(found: Pooled, seeds: int, prompts: int) -> float:
    """Half the interval of the same variances with other numbers of seeds and prompts."""
    parts = (
        (found.of_seeds * found.seeds / seeds, seeds),
        (found.of_prompts * found.prompts / prompts, prompts),
    )
    return math.sqrt(sum(part * student.ppf(0.975, n - 1) ** 2 for part, n in parts))


def test_the_number_that_would_do_is_the_least_with_an_interval_above_zero() -> None:
    found = over_seeds([[0.0, 1.0, 5.0, -4.0], [0.01, 1.01, 5.01, -3.99]])
    prompts, seeds = found.enough()
    assert prompts is not None
    assert seeds is None, "the prompts alone are too few for any number of seeds"
    assert half(found, 2, prompts) < found.mean <= half(found, 2, prompts - 1)


def test_what_two_seeds_do_not_tell_needs_more_than_two() -> None:
    draw = np.random.default_rng(3)
    for gap in (0.2, 0.3, 0.4):
        found = over_seeds(np.array([[0.3], [0.3 + gap]]) + 0.1 * draw.normal(size=(1, 50)))
        prompts, seeds = found.enough()
        assert found.low < 0
        assert prompts is None, "two seeds that differ are too few for any number of prompts"
        assert seeds is not None
        assert seeds > 2
        assert half(found, seeds, 50) < found.mean <= half(found, seeds - 1, 50)


def test_an_interval_is_cut_to_what_is_possible() -> None:
    found = over_seeds([[0.9, 1.0], [0.5, 1.0]])
    assert found.high > 1
    assert found.within(0.0, 1.0).high == 1
    assert not over_seeds(np.zeros((2, 9))).within(0.0, 1.0).known


def test_missing_values_and_other_shapes_are_refused() -> None:
    for wrong in ([[1.0, math.nan]], [1.0, 2.0], np.zeros((0, 3))):
        with pytest.raises(ValueError, match=r"shape|missing"):
            over_seeds(wrong)


@pytest.mark.parametrize(("seeds", "of_seed", "of_both"), [(2, 0.02, 0.5), (2, 0.3, 0.5), (3, 0.1, 0.0)])
def test_the_interval_holds_the_true_mean_as_often_as_it_says(seeds: int, of_seed: float, of_both: float) -> None:
    draw = np.random.default_rng(7)
    held = []
    for _ in range(300):
        value = draw.normal(0, of_seed, (seeds, 1)) + draw.normal(0, 1, (1, 60)) + draw.normal(0, of_both, (seeds, 60))
        found = over_seeds(value)
        held.append(found.low <= 0 <= found.high)
    assert np.mean(held) > 0.95 - 4 * math.sqrt(0.95 * 0.05 / 300)
