"""The paired test by prompt, against the tests of scipy, by hand, and its power by counting."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, permutation_test

from lit_safe.statistics.sign_flip import _needed, detectable_change, found_with, sign_flip_p


def test_one_response_a_prompt_is_mcnemars_exact_test():
    for up, down in ((6, 0), (9, 3), (4, 4), (0, 1)):
        differences = [1] * up + [-1] * down + [0] * 20
        assert sign_flip_p(differences) == pytest.approx(binomtest(up, up + down).pvalue)


def test_no_change_at_all_is_no_evidence():
    assert sign_flip_p([0, 0, 0]) == 1.0
    assert sign_flip_p([]) == 1.0


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=7))
def test_it_counts_all_signs(differences):
    total = abs(sum(differences))
    signs = itertools.product((-1, 1), repeat=len(differences))
    wanted = np.mean([abs(np.dot(sign, differences)) >= total for sign in signs])
    assert sign_flip_p(differences) == pytest.approx(wanted)
    assert sign_flip_p([-d for d in differences]) == pytest.approx(wanted)


def test_it_is_scipys_permutation_test_of_paired_samples():
    after, before = np.array([3, 2, 4, 0, 1, 4, 3, 2]), np.array([1, 2, 0, 1, 0, 1, 3, 0])
    found = permutation_test(
        (after, before), lambda a, b, axis: (a - b).sum(axis), permutation_type="samples", vectorized=True
    )
    assert sign_flip_p(after - before) == pytest.approx(found.pvalue)


def test_shares_that_are_no_counts_are_refused():
    with pytest.raises(ValueError, match="differences are counts"):
        sign_flip_p([0.5, 1.0])


def test_the_numbers_needed_are_the_least_that_scipys_test_rejects():
    for n, least in enumerate(_needed(25, 0.05).tolist()):
        rejected = [k for k in range(n // 2 + 1, n + 1) if binomtest(k, n).pvalue <= 0.05] if n else []
        assert least == min(rejected, default=n + 1)


def test_fewer_than_six_prompts_detect_nothing_and_six_need_a_change_of_nearly_all():
    assert detectable_change(5) is None
    six = detectable_change(6)
    assert six is not None
    assert six**6 == pytest.approx(0.8, abs=1e-6)  # all six must change, in one direction


def test_the_power_is_that_of_simulated_tests():
    rng = np.random.default_rng(0)
    signs = rng.choice([1, -1, 0], p=[0.3, 0.1, 0.6], size=(600, 50))
    rejected = np.mean([sign_flip_p(row) <= 0.05 and row.sum() > 0 for row in signs])
    assert found_with(50, 0.1, 0.2) == pytest.approx(rejected, abs=0.06)


def test_more_prompts_detect_less_and_changes_against_it_hide_it():
    assert detectable_change(100) > detectable_change(400)
    assert detectable_change(100) < detectable_change(100, 0.1)
    assert found_with(100, 0.1, detectable_change(100, 0.1)) == pytest.approx(0.8, abs=1e-6)
    with pytest.raises(ValueError, match="opposite is a share"):
        detectable_change(100, 0.5)
