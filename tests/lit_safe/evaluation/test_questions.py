"""Which prompts of a suite are asked, what is refused, and what is planned before a response."""

import pytest

from data.questions import Questions
from data.schema import Message
from data.sources.prompts import Prompts
from lit_safe.errors.message import SettingError
from lit_safe.evaluation.plan import plan, plan_lines
from lit_safe.evaluation.suites import Suite, questions
from lit_safe.statistics.clustered import clustered_mean
from models.sources import TinyLlama
from tests.lit_safe.evaluate_world import Asked, question
from tests.lit_safe.pair_world import pairs


@pytest.fixture(scope="module")
def data():
    made = Questions(64)
    made.connect(TinyLlama())
    return made


def test_prompts_are_chosen_by_hash_and_stay_in_order(data):
    whole = questions({"x": Suite(Asked("x", 30), True)}, data)
    few = questions({"x": Suite(Asked("x", 30), True, prompts=7)}, data)
    assert len(few) == 7
    assert few == [q for q in whole if q in few]
    assert set(few) < set(questions({"x": Suite(Asked("x", 30), True, prompts=8)}, data))


def test_a_source_that_says_what_it_holds_needs_no_setting_and_is_not_contradicted(data):
    (q,) = questions({"x": Suite(Asked("x", 1, harmful=True))}, data)
    assert q.harmful
    with pytest.raises(SettingError, match=r"suites.x.harmful is false, and row x:0 says true: set it to null"):
        questions({"x": Suite(Asked("x", 1, harmful=True), harmful=False)}, data)
    with pytest.raises(SettingError, match="nothing says whether the prompts of the suite x are harmful"):
        questions({"x": Suite(Asked("x", 1))}, data)


def test_an_empty_suite_and_none_at_all_are_named(data):
    with pytest.raises(SettingError, match=r"the suite x has no prompts \(x\)"):
        questions({"x": Suite(Asked("x", 0), True)}, data)
    with pytest.raises(SettingError, match=r"there are no suites: give -c configs/evaluation"):
        questions({}, data)


def test_a_file_without_the_column_is_named_with_row_and_column(data, tmp_path):
    path = tmp_path / "asked.csv"
    path.write_text("question\nHow?\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"asked.csv:1, column 'prompt': is null or missing"):
        questions({"x": Suite(Prompts(str(path)), True)}, data)


def test_prompts_of_the_train_split_are_known_as_such():
    data = pairs()
    data.setup("validate")
    prompt = data.prompts("train")[0].text

    class Again(Asked):
        def __iter__(self):
            (row,) = super().__iter__()
            yield type(row)(row.id, (Message("user", prompt),))

    (q,) = questions({"x": Suite(Again("x", 1), True)}, data)
    assert q.trained_on


def test_the_plan_is_computed_from_numbers_of_prompts_alone():
    asked = [question(i, category="abc"[min(i, 2)]) for i in range(40)]
    (planned,) = plan([*asked])
    assert (planned.prompts, planned.smallest) == (40, ("a", 1))
    assert planned.detectable[0] < planned.detectable[1] < planned.detectable[2]
    first, second = plan_lines([planned], 1, paired=True)
    assert first.startswith("s: 40 harmful prompts. Found with probability 80 % (test by prompt, 5 %): a change of 1")
    assert second.strip() == "smallest category: a, 1 prompts: no change can be found, before Holm's adjustment"
    half = clustered_mean([0.0, 1.0] * 20, range(40), share=True).bounds
    assert planned.reach == pytest.approx((half[1] - half[0]) / 2)
    assert "±16.4 points" in plan_lines([planned], 1, paired=False)[0]
    (few,) = plan([question(i) for i in range(3)])
    assert "finds no change of any size" in plan_lines([few], 4, paired=True)[0]
