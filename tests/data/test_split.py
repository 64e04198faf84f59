import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.schema import Message, SftRow
from data.sources.formats import Cell
from data.split import SHARES, WORD, assign, normalise, prompt_id, split_key, split_of, text_id
from lit_safe.hashing import hash64

texts = st.text(st.characters(codec="utf-8"))


def conversation(text, system=()):
    return (*system, Message("user", text))


@given(texts)
def test_a_prompt_lies_in_one_split_in_whichever_form_a_source_has_it(text):
    forms = [text, conversation(text), conversation(text, (Message("system", "Be kind"),))]
    assert len({split_key(form) for form in forms}) == 1
    assert len({split_of(form) for form in forms}) == 1
    assert len({prompt_id(form) for form in forms}) == 3, "a model reads three prompts"


@given(texts, texts)
def test_different_texts_have_different_ids(one, other):
    assert (prompt_id(one) == prompt_id(other)) == (one == other)
    assert (prompt_id(conversation(one)) == prompt_id(conversation(other))) == (one == other)


ALIKE = [
    ("C", "C++"),
    ("2+2?", "2-2?"),
    ("f(x)", "f[x]"),
    ("\N{DOG FACE}", "\N{CAT FACE}"),
    ("?!", "..."),
    ("\N{DEVANAGARI LETTER KA}\N{DEVANAGARI VOWEL SIGN I}", "\N{DEVANAGARI LETTER KA}\N{DEVANAGARI VOWEL SIGN U}"),
    ("a\x1fb", "a\x1f\x1fb"),
]


@pytest.mark.parametrize("pair", ALIKE, ids=ascii)
def test_prompts_that_normalise_alike_are_two_prompts_of_one_split(pair):
    assert len({prompt_id(conversation(text)) for text in pair}) == 2
    assert len({split_of(conversation(text)) for text in pair}) == 1


@given(texts, texts, texts)
def test_a_pairs_id_is_free_of_its_order_and_of_nothing_else(prompt, one, other):
    assert text_id(prompt, one, other) == text_id(prompt, other, one)
    assert (text_id(prompt, one, other) == text_id(prompt, one, one)) == (one == other)


@given(st.text(), st.lists(st.text(), max_size=3), st.booleans(), st.sampled_from(["", '{"name": "f"}']))
def test_an_id_is_the_hash_of_prompt_and_responses_as_json(text, responses, plain, fields):
    prompt = text if plain else (Message("user", text, fields), Message("system", Cell(text)))
    turns = text if plain else [["user", text, *([fields] if fields else [])], ["system", text]]
    assert text_id(prompt, *responses) == hash64("text", json.dumps([turns, sorted(responses)]))


def test_the_split_of_a_prompt_is_pinned():
    """A change of the hash would move prompts from train to val under every checkpoint that there is."""
    names = ["train", "val", "dual", "certify"]
    assert [names.index(split_of(f"Which fruit is number {i}?")) for i in range(24)] == [
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        1,
        0,
        0,
        0,
        0,
        0,
        1,
        0,
        0,
        0,
        2,
        0,
        0,
        1,
        0,
    ]


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
    barred = {split_key(row.prompt): "val" for row in rows[:40]}
    splits = assign(rows, barred)
    assert {splits[i] for i in barred} == {"val"}
    assert "train" in {split for i, split in splits.items() if i not in barred}


def test_shares_that_leave_prompts_over_are_refused():
    with pytest.raises(ValueError, match="sum to 1"):
        split_of("a", shares={"train": 0.5, "val": 0.1, "dual": 0.1, "certify": 0.1})


def test_a_letter_or_digit_is_what_python_says_it_is():
    every = [chr(code) for code in range(0x110000)]
    assert [c for c in every if bool(WORD.fullmatch(c)) != c.isalnum()] == []
