"""Files that a user adds to a certificate, and the errors that name what is wrong with them."""

import json

import pytest

from lit_safe.constraint.certificate.inputs import read_labels, read_strata

PROMPTS = ["Who?", "Why, then?", "Where?"]
RESPONSES = ["Me.", "So.", "Here."]


def test_strata_are_read_from_csv_and_json_lines_alike(tmp_path):
    table, lines = tmp_path / "strata.csv", tmp_path / "strata.jsonl"
    table.write_text(
        '\ufeffprompt,stratum,more\nWho?,people,x\n"Why, then?",reasons,y\nWhere?,reasons,z\n', encoding="utf-8"
    )
    rows = zip(PROMPTS, ("people", "reasons", "reasons"), strict=True)
    lines.write_text(
        "".join(json.dumps({"prompt": prompt, "stratum": name}) + "\n" for prompt, name in rows), encoding="utf-8"
    )
    assert read_strata(table, PROMPTS) == read_strata(lines, PROMPTS) == {"people": [0], "reasons": [1, 2]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt,kind\nWho?,people\n", "row 1: has no 'stratum'; it needs prompt, stratum"),
        ("prompt,stratum\nWho?,a\nWho?,b\n", r"row 2: the prompt 'Who\?' is in the strata 'a' and 'b'"),
        ("prompt,stratum\nWho?,a\n", "no stratum for 2 of the 3 prompts: .* first is 'Why, then\\?'"),
        ("prompt,stratum\n", "has no rows"),
    ],
)
def test_strata_that_do_not_fit_are_named(tmp_path, text, message):
    path = tmp_path / "strata.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_strata(path, PROMPTS)


def test_labels_are_matched_by_prompt_and_response_and_other_texts_are_left_out(tmp_path):
    path = tmp_path / "labels.jsonl"
    rows = [
        {"prompt": "Where?", "response": "Here.", "unsafe": True},
        {"prompt": "Who?", "response": "Me.", "unsafe": "no"},
        {"prompt": "Who?", "response": "You.", "unsafe": 1},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    turns, labels = read_labels(path, PROMPTS, RESPONSES)
    assert turns.tolist() == [0, 2]
    assert labels.tolist() == [False, True]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("Who?,Me.,perhaps\n", "row 1: unsafe is 'perhaps', it must be true or false"),
        ("Who?,Me.,true\nWho?,Me.,false\n", "row 2: the response was labelled both safe and unsafe"),
        ("Who?,Nobody.,true\n", "none of the 1 labelled texts of .* is a response of this certificate"),
    ],
)
def test_labels_that_do_not_fit_are_named(tmp_path, rows, message):
    path = tmp_path / "labels.csv"
    path.write_text(f"prompt,response,unsafe\n{rows}", encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_labels(path, PROMPTS, RESPONSES)


def test_lines_that_are_not_json_are_named(tmp_path):
    path = tmp_path / "labels.jsonl"
    path.write_text('{"prompt": "Who?"\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"labels\.jsonl, row 1: is not JSON"):
        read_labels(path, PROMPTS, RESPONSES)
