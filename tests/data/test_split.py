from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.schema import Message, SftRow
from data.split import SHARES, assign, normalise, prompt_id, split_of

texts = st.text(st.characters(codec="utf-8"))


def conversation(text, system=()):
    return (*system, Message("user", text))


@given(texts)
def test_a_prompt_is_the_same_prompt_in_every_source(text):
    forms = [text, conversation(text), conversation(text, (Message("system", "Be kind"),))]
    assert len({prompt_id(form) for form in forms}) == 1
    assert len({split_of(form) for form in forms}) == 1


WIDE = "\N{FULLWIDTH LATIN CAPITAL LETTER H}ow do I bake bread"


@pytest.mark.parametrize("same", ["how do i  BAKE bread", "How do I bake bread?!", " How, do I\nbake bread", WIDE])
def test_case_space_punctuation_and_width_do_not_make_another_prompt(same):
    assert normalise(same) == normalise("How do I bake bread?")


@pytest.mark.parametrize("other", ["How do I bake a bread?", "Howdo I bake bread?", "How do you bake bread?"])
def test_other_words_do(other):
    assert prompt_id(other) != prompt_id("How do I bake bread?")


def test_who_said_it_matters():
    turns = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    assert prompt_id(tuple(turns)) != prompt_id((turns[0], Message("user", "b"), turns[2]))


def test_splits_have_their_shares():
    count = Counter(split_of(f"prompt {i}") for i in range(20_000))
    for name, share in SHARES.items():
        assert count[name] / 20_000 == pytest.approx(share, abs=4 * (share * (1 - share) / 20_000) ** 0.5)


def test_a_group_stays_together_and_takes_its_prompts_along_wherever_they_stand():
    grouped = [SftRow(f"xs:{i}", f"prompt {i}", "r", split_group="kill") for i in range(50)]
    again = [SftRow(f"other:{i}", f"Prompt {i}!", "r") for i in range(50)]
    for rows in (grouped + again, again + grouped):
        assert set(assign(rows).values()) == {split_of("", "kill")}
    assert len(set(assign(again).values())) > 1


def test_prompts_for_evaluation_alone_are_never_in_train_dual_or_certify():
    rows = [SftRow(f"a:{i}", f"prompt {i}", "r", split_group="g" if i % 2 else None) for i in range(100)]
    barred = {prompt_id(row.prompt) for row in rows[:40]}
    splits = assign(rows, barred)
    assert {splits[i] for i in barred} == {"val"}
    assert "train" in {split for i, split in splits.items() if i not in barred}


def test_shares_that_leave_prompts_over_are_refused():
    with pytest.raises(ValueError, match="sum to 1"):
        split_of("a", shares={"train": 0.5, "val": 0.1, "dual": 0.1, "certify": 0.1})
