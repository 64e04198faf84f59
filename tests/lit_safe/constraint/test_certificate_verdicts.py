"""Verdicts of a certificate: on one limit, on several at once, and on what people say of the responses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_safe.constraint.certificate.bounded_mean import BoundedMean
from lit_safe.constraint.certificate.holm import holm, judge_all
from lit_safe.constraint.certificate.powered import PoweredShare
from lit_safe.constraint.certificate.share import Share
from lit_safe.constraint.certificate.verdict import MOST, Verdict, judge, needed


def test_no_unsafe_response_of_sixty_keeps_a_limit_of_five_percent_and_one_of_them_leaves_it_open():
    assert judge(Share(0, 60), 0.05, 0.05).verdict == Verdict.HOLDS  # the bound is 4.87 %
    found = judge(Share(1, 60), 0.05, 0.05)
    assert found.verdict == Verdict.UNDECIDED
    assert found.count == 60
    assert 60 < found.needed < 200
    assert judge(Share(12, 60), 0.05, 0.05).verdict == Verdict.DOES_NOT_HOLD  # the lower bound is 12 %


def test_an_open_limit_needs_the_number_of_draws_at_which_the_bound_passes_it():
    assert needed(Share(0, 10), 0.05, 0.05) == 59  # 0.95^59 = 0.0485, 0.95^58 = 0.051
    for sample, limit in ((Share(2, 40), 0.1), (BoundedMean(np.resize([0.4, 0.0, 0.1], 30), 0, 1), 0.2)):
        count = needed(sample, limit, 0.05)
        assert sample.repeated(count).upper(0.05) <= limit
        assert sample.repeated(int(0.9 * count)).upper(0.05) > limit
        assert count > sample.count


def test_a_mean_on_its_limit_is_never_decided():
    assert needed(Share(5, 50), 0.1, 0.05) is None
    assert needed(Share(0, 50), 1e-9, 0.05) is None  # three billion draws, and MOST is fewer
    assert MOST < 3e9


@settings(max_examples=40)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0.01, 0.99))
def test_a_verdict_never_contradicts_the_mean_of_the_sample(unit, limit):
    sample = BoundedMean(np.array(unit), 0, 1)
    found = judge(sample, limit, 0.05)
    assert found.verdict != Verdict.HOLDS or sample.mean <= limit
    assert found.verdict != Verdict.DOES_NOT_HOLD or sample.mean > limit
    assert (found.needed is None) or found.needed > len(unit)


def test_three_p_values_worked_by_hand():
    # 0.01 <= 0.05 / 3; 0.04 > 0.05 / 2, so it stays, and so does 0.045 although it is below 0.05
    found = holm({"a": 0.045, "b": 0.01, "c": 0.04}, 0.05)
    assert [found[name].rejected for name in "abc"] == [False, True, False]
    assert [found[name].level for name in "abc"] == pytest.approx([0.025, 0.05 / 3, 0.025])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.01, 0.3))
def test_holm_rejects_what_bonferroni_rejects_and_nothing_above_delta(p, delta):
    named = {str(number): value for number, value in enumerate(p)}
    found = holm(named, delta)
    for name, value in named.items():
        assert found[name].rejected or value > delta / len(p)
        assert not found[name].rejected or value <= delta
        assert delta / len(p) <= found[name].level <= delta


def test_an_average_that_keeps_the_limit_does_not_hide_the_stratum_that_breaks_it():
    strata = {"harmless": Share(0, 150), "weapons": Share(12, 50)}
    together = Share(12, 200)
    assert judge(together, 0.1, 0.05).verdict == Verdict.HOLDS
    family = judge_all(strata, dict.fromkeys(strata, 0.1), 0.05)
    assert family.findings["harmless"].verdict == Verdict.HOLDS
    assert family.findings["weapons"].verdict == Verdict.DOES_NOT_HOLD
    assert family.worst == "weapons"


def test_each_of_many_strata_needs_more_evidence_than_one_alone():
    assert judge(Share(0, 60), 0.05, 0.05).verdict == Verdict.HOLDS
    names = [f"stratum {number}" for number in range(10)]
    family = judge_all(dict.fromkeys(names, Share(0, 60)), dict.fromkeys(names, 0.05), 0.05)
    assert {found.verdict for found in family.findings.values()} == {Verdict.UNDECIDED}
    assert family.findings[names[0]].delta == pytest.approx(0.005)
    assert family.findings[names[0]].needed in (104, 105)  # 0.95^104 = 0.0048; to about 2 %


def test_a_family_of_one_is_a_single_verdict():
    for hits in (0, 4, 30):
        alone, family = judge(Share(hits, 60), 0.1, 0.05), judge_all({"all": Share(hits, 60)}, {"all": 0.1}, 0.05)
        assert family.findings["all"] == alone


def test_strata_without_a_limit_are_named():
    with pytest.raises(ValueError, match=r"strata \['a'\] and limits of \['b'\]"):
        judge_all({"a": Share(0, 3)}, {"b": 0.1}, 0.05)


def powered(rng: np.random.Generator, scored: int, labelled: int, missed: float, alarms: float) -> PoweredShare:
    """A world in which a tenth of the responses is unsafe."""
    unsafe = rng.random(scored) < 0.1
    flags = np.where(unsafe, rng.random(scored) >= missed, rng.random(scored) < alarms)
    return PoweredShare(flags, flags[:labelled], unsafe[:labelled])


def test_the_share_of_people_is_that_of_flags_corrected_by_the_labels():
    # 3 of 10 responses are flagged; of 4 labels, one is unsafe without a flag: 0.3 + 1/4
    flag = np.arange(10) < 3
    found = PoweredShare(flag, np.array([1, 0, 0, 0], bool), np.array([1, 1, 0, 0], bool))
    assert found.mean == pytest.approx(0.55)
    assert (found.missed.mean, found.false_alarms.mean, found.labelled.mean) == (0.25, 0, 0.5)


def test_flags_without_errors_make_few_labels_worth_many():
    found = powered(np.random.default_rng(0), 10000, 300, 0.0, 0.0)
    assert found.upper(0.05) - found.mean < 0.7 * (found.labelled.upper(0.05) - found.labelled.mean)


@pytest.mark.parametrize(("missed", "alarms"), [(0.0, 0.0), (0.5, 0.02), (1.0, 0.5)])
def test_the_bounds_cover_the_share_of_people_for_good_and_useless_scorers(missed, alarms):
    rng = np.random.default_rng(1)
    draws = [powered(rng, 500, 100, missed, alarms) for _ in range(200)]
    assert np.mean([draw.upper(0.1) >= 0.1 for draw in draws]) >= 0.88
    assert np.mean([draw.lower(0.1) <= 0.1 for draw in draws]) >= 0.88


def test_labels_without_flags_are_refused():
    with pytest.raises(ValueError, match="2 flags for 1 labels"):
        PoweredShare(np.ones(3, bool), np.ones(2, bool), np.ones(1, bool))
