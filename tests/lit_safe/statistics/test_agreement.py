"""Agreement of judges against hand-worked tables and textbook errors, and shares corrected by human labels."""

import math

import numpy as np
import pytest

from lit_safe.statistics.agreement import agreement
from lit_safe.statistics.human_corrected import corrected_share


def table(both, one, two, neither):
    """Verdicts of two judges with these counts: both positive, only the first, only the second, neither."""
    first = [1] * both + [1] * one + [0] * two + [0] * neither
    second = [1] * both + [0] * one + [1] * two + [0] * neither
    return np.array(first, float), np.array(second, float), np.arange(len(first))


def test_a_table_gives_the_figures_of_the_textbook():
    found = agreement(*table(20, 5, 10, 15))
    assert found.equal.mean == pytest.approx(0.7)
    assert found.kappa.mean == pytest.approx(0.4)  # chance: .5 * .6 + .5 * .4 = .5
    assert found.hits.mean == pytest.approx(20 / 30)
    assert found.false_alarms.mean == pytest.approx(5 / 20)
    assert found.differ.tolist() == list(range(20, 35))
    assert "kappa 0.400 [" in str(found)


def test_the_error_of_kappa_is_that_of_fleiss_cohen_and_everitt():
    both, one, two, neither = 88, 10, 12, 40
    n = both + one + two + neither
    p = np.array([[both, one], [two, neither]]) / n
    row, column = p.sum(1), p.sum(0)
    equal, chance = p.trace(), float(row @ column)
    a = sum(p[i, i] * ((1 - chance) - (column[i] + row[i]) * (1 - equal)) ** 2 for i in range(2))
    b = (1 - equal) ** 2 * sum(p[i, j] * (column[i] + row[j]) ** 2 for i in range(2) for j in range(2) if i != j)
    c = (equal * chance - 2 * chance + equal) ** 2
    variance = (a + b - c) / (1 - chance) ** 4 / n  # Fleiss, Cohen & Everitt 1969
    found = agreement(*table(both, one, two, neither)).kappa
    assert found.stderr == pytest.approx(math.sqrt(variance * n / (n - 1)), rel=1e-9)
    low, high = found.bounds
    assert low < found.mean < high <= 1


def test_twice_the_same_answers_of_the_same_prompts_add_no_certainty():
    first, second, prompt = table(20, 5, 10, 15)
    once = agreement(first, second, prompt).kappa
    twice = agreement(np.tile(first, 2), np.tile(second, 2), np.tile(prompt, 2)).kappa
    assert (twice.mean, twice.stderr) == pytest.approx((once.mean, once.stderr))


def test_equal_judges_have_kappa_one_swapped_ones_minus_one_and_a_constant_one_zero():
    first, _, prompt = table(10, 0, 0, 10)
    assert agreement(first, first, prompt).kappa.mean == 1
    assert agreement(first, 1 - first, prompt).kappa.mean == -1
    assert agreement(np.ones(20), first, prompt).kappa.mean == 0
    assert math.isnan(agreement(np.ones(20), np.ones(20), prompt).kappa.mean)
    forth, back = (agreement(*pair, prompt).kappa.mean for pair in ((first, np.ones(20)), (np.ones(20), first)))
    assert forth == back


def test_missing_verdicts_are_counted_and_left_out():
    first, second, prompt = table(20, 5, 10, 15)
    first[[0, 49]] = math.nan
    found = agreement(first, second, prompt)
    assert (found.unknown, found.equal.count) == (2, 48)
    assert found.differ.tolist() == list(range(20, 35))
    empty = agreement([math.nan], [1], [0])
    assert (empty.unknown, empty.equal.count, math.isnan(empty.kappa.mean)) == (1, 0, True)


@pytest.mark.parametrize("value", [0.5, 2, -1, math.inf])
def test_a_score_that_is_no_verdict_is_refused(value):
    with pytest.raises(ValueError, match="0, 1 or NaN, got"):
        agreement([value], [1], [0])
    with pytest.raises(ValueError, match="0, 1 or NaN, got"):
        corrected_share([value], [1], [0])
    with pytest.raises(ValueError, match="expected of each"):
        agreement([1], [1, 0], [0, 1])


def test_with_all_labels_the_corrected_share_is_that_of_people():
    first, second, prompt = table(20, 5, 10, 15)
    found = corrected_share(first, second, prompt)
    assert found.mean == pytest.approx(second.mean())
    assert found.stderr == pytest.approx(math.sqrt(second.var() / 49))


def test_the_correction_by_hand():
    verdict = np.array([1.0] * 60 + [0.0] * 40)
    label = np.full(100, math.nan)
    label[:30] = [1] * 18 + [0] * 12  # 12 false alarms among 30 labelled positives
    label[60:80] = [1] * 1 + [0] * 19  # 1 miss among 20 labelled negatives
    found = corrected_share(verdict, label, np.arange(100))
    assert found.mean == pytest.approx(0.6 - (12 - 1) / 50)
    assert found.bounds[0] < found.mean < found.bounds[1]


def test_a_biased_judge_is_corrected_and_its_interval_covers():
    """2,000 responses, 200 labelled at random; the judge misses a third and has 10 % false alarms."""
    generator = np.random.default_rng(0)
    hits, estimates, raw = 0, [], []
    for _ in range(60):
        people = generator.random(2000) < 0.2
        verdict = np.where(people, generator.random(2000) < 2 / 3, generator.random(2000) < 0.1).astype(float)
        label = np.where(np.arange(2000) < 200, people, math.nan)
        found = corrected_share(verdict, label, np.arange(2000))
        estimates.append(found.mean - people.mean())
        raw.append(verdict.mean() - people.mean())
        hits += found.bounds[0] <= 0.2 <= found.bounds[1]
    assert abs(np.mean(estimates)) < 3 * np.std(estimates) / math.sqrt(60)
    assert abs(np.mean(raw)) > 8 * np.std(raw) / math.sqrt(60), "the judge alone is biased"
    assert hits >= 53


def test_few_labels_give_no_interval_and_none_no_share():
    verdict, label = np.ones(50), np.full(50, math.nan)
    label[:5] = 1
    found = corrected_share(verdict, label, np.arange(50))
    assert found.mean == 1
    assert math.isnan(found.bounds[0])
    with pytest.raises(ValueError, match="no judged response has a label"):
        corrected_share(verdict, np.full(50, math.nan), np.arange(50))
