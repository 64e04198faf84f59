"""Sources of pairs on small invented files: what becomes of their columns."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from data.annotators.flags import Flags
from data.schema import BadRow, Message, Response, Row, Source
from data.sources.beavertails import BeaverTails
from data.sources.hh_rlhf import HHRLHF
from data.sources.instructions import Instructions, ResponsesOf
from data.sources.pku_saferlhf import PKUSafeRLHF
from data.sources.pyrit import PyRIT
from data.sources.sample import Sample
from data.sources.scored import ScoredPairs
from data.sources.trl import TRL
from data.sources.xstest import XSTest, groups_of

ASK = (Message("user", "How do I bake bread?"),)


def jsonl(path: Path, *rows: object) -> str:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def table(path: Path, *rows: dict[str, Any], above: str = "") -> str:
    with open(path, "w", newline="", encoding="utf-8") as file:
        file.write(above)
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def rows_of(source: Source) -> list[Row]:
    found = list(source)
    assert all(isinstance(row, Row) for row in found), found
    return found  # type: ignore[return-value]


def only(source: Source) -> Row:
    (row,) = rows_of(source)
    return row


def fault(source: Any) -> tuple[str, str]:
    (bad,) = source
    assert isinstance(bad, BadRow)
    return bad.column, bad.reason


PKU = {
    "prompt": "How do I bake bread?",
    "response_0": "With flour.",
    "response_1": "With patience.",
    "is_response_0_safe": True,
    "is_response_1_safe": False,
    "better_response_id": 1,
    "safer_response_id": 0,
}


def test_a_pku_row_keeps_both_orders_and_both_flags(tmp_path: Path) -> None:
    row = only(PKUSafeRLHF(jsonl(tmp_path / "a.jsonl", PKU)))
    assert row == Row(
        "a.jsonl:1", ASK, (Response("With flour.", True), Response("With patience.", False)), 1, 0, "model"
    )


def test_a_pku_file_without_an_order_says_nothing_of_it_but_a_null_order_is_a_fault(tmp_path: Path) -> None:
    bare = {key: value for key, value in PKU.items() if key != "better_response_id"}
    assert only(PKUSafeRLHF(jsonl(tmp_path / "a.jsonl", bare))).better is None
    null = fault(PKUSafeRLHF(jsonl(tmp_path / "b.jsonl", PKU | {"better_response_id": None})))
    assert null == ("better_response_id", "is null or missing")


def test_the_current_pku_schema_adds_severity_and_the_categories_asked_for(tmp_path: Path) -> None:
    extra = {
        f"response_{k}_{name}": value[k]
        for k in (0, 1)
        for name, value in {
            "severity_level": (0, 2),
            "harm_category": ({"Noise": False, "Dust": False}, {"Noise": True, "Dust": False}),
        }.items()
    }
    path = jsonl(tmp_path / "a.jsonl", PKU | extra)
    first, second = only(PKUSafeRLHF(path, categories=["Noise"])).responses
    assert (first.severity, first.scores) == (0, {"Noise": 0.0})
    assert (second.severity, second.scores) == (2, {"Noise": 1.0})
    assert fault(PKUSafeRLHF(path, categories=["Heat"])) == ("response_0_harm_category.Heat", "is null or missing")


def test_a_pku_row_that_calls_the_unsafe_response_safer_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", PKU | {"safer_response_id": 1})
    assert fault(PKUSafeRLHF(path)) == ("safer", "names the unsafe response as the safer one")


def answer(prompt: str, response: str, safe: bool) -> dict[str, Any]:
    return {"prompt": prompt, "response": response, "is_safe": safe, "category": {"noise": not safe}}


def test_beavertails_pairs_every_safe_answer_with_every_unsafe_one_of_its_prompt(tmp_path: Path) -> None:
    answers = [answer("p", "a", True), answer("p", "b", False), answer("q", "c", True), answer("p", "d", False)]
    rows = rows_of(BeaverTails(jsonl(tmp_path / "a.jsonl", *answers), pairs_per_prompt=9, categories=["noise"]))
    assert {(row.responses[row.safer or 0].text, row.responses[1 - (row.safer or 0)].text) for row in rows} == {
        ("a", "b"),
        ("a", "d"),
    }
    assert all(row.prompt == (Message("user", "p"),) and row.better is None for row in rows)
    assert all(response.scores["noise"] == response.severity for row in rows for response in row.responses)
    assert len(rows_of(BeaverTails(jsonl(tmp_path / "b.jsonl", *answers), pairs_per_prompt=1))) == 1


def test_beavertails_takes_the_majority_of_those_who_labelled_an_answer(tmp_path: Path) -> None:
    votes = [answer("p", "a", safe) for safe in (True, True, False)] + [
        answer("p", "b", safe) for safe in (True, False)
    ]
    row = only(BeaverTails(jsonl(tmp_path / "a.jsonl", *votes)))
    by_text = {response.text: response for response in row.responses}
    assert by_text["a"].safe is True
    assert by_text["a"].severity == pytest.approx(1 / 3)
    assert by_text["b"].safe is False  # a tie is not safe
    assert row.responses[row.safer or 0].text == "a"


def talk(*turns: str) -> str:
    roles = ("Human", "Assistant")
    return "".join(f"\n\n{roles[i % 2]}: {turn}" for i, turn in enumerate(turns))


def test_hh_transcripts_share_their_dialogue_and_end_in_two_answers(tmp_path: Path) -> None:
    pair = {
        "chosen": talk("Hi", "Hello", "Bread?", "Flour.\n\nAnd salt."),
        "rejected": talk("Hi", "Hello", "Bread?", "No"),
    }
    path = jsonl(tmp_path / "a.jsonl", pair)
    row = only(HHRLHF(path))
    assert row.prompt == (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Bread?"))
    assert [response.text for response in row.responses] == ["Flour.\n\nAnd salt.", "No"]
    assert (row.better, row.safer) == (None, 0)
    row = only(HHRLHF(path, chosen_is="better"))
    assert (row.better, row.safer) == (0, None)


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        (talk("a", "b"), talk("other", "b"), ("rejected", "differs from chosen in more than its last turn")),
        (talk("a", ""), talk("a", "b"), ("chosen", "has an empty turn")),
        (talk("a"), talk("a", "b"), ("chosen", "does not end with the assistant")),
        ("plain text", talk("a", "b"), ("chosen", "does not begin with a turn")),
        ("\n\nAssistant: a", "\n\nAssistant: b", ("chosen", "has no turn before the answer")),
    ],
)
def test_a_transcript_that_is_no_dialogue_is_named(
    tmp_path: Path, chosen: str, rejected: str, expected: tuple[str, str]
) -> None:
    assert fault(HHRLHF(jsonl(tmp_path / "a.jsonl", {"chosen": chosen, "rejected": rejected}))) == expected


USER, GOOD, BAD = (
    {"role": r, "content": c} for r, c in (("user", "Bread?"), ("assistant", "Yes"), ("assistant", "No"))
)
SHARED = (Message("user", "Bread?"),)


@pytest.mark.parametrize(
    ("record", "prompt"),
    [
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, SHARED),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, SHARED),
        ({"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]}, SHARED),
        ({"prompt": "Bread?", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, SHARED),
        ({"prompt": "Bread?", "chosen": [GOOD], "rejected": [BAD]}, SHARED),
        ({"prompt": [USER], "chosen": "Yes", "rejected": "No"}, SHARED),
        ({"prompt": "Bread?", "chosen": "Yes", "rejected": "No"}, "Bread?"),
        (
            {
                "prompt": [{"from": "human", "value": "Bread?"}],
                "chosen": {"from": "gpt", "value": "Yes"},
                "rejected": {"from": "gpt", "value": "No"},
            },
            SHARED,
        ),
    ],
)
def test_every_trl_format_gives_one_prompt_and_two_answers(tmp_path: Path, record: Any, prompt: Any) -> None:
    row = only(TRL(jsonl(tmp_path / "a.jsonl", record)))
    assert row.prompt == prompt
    assert [response.text for response in row.responses] == ["Yes", "No"]
    assert (row.better, row.safer) == (0, None)


def test_a_plain_prompt_becomes_a_users_turn_where_that_is_asked_for(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"prompt": "Bread?", "chosen": "Yes", "rejected": "No"})
    assert only(TRL(path, user_turn=True)).prompt == SHARED


def test_an_implicit_plain_prompt_ends_before_the_word_that_differs(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"chosen": "Q: bread?\nA: I can bake", "rejected": "Q: bread?\nA: I cannot"})
    row = only(TRL(path))
    assert row.prompt == "Q: bread?\nA: I"
    assert [response.text for response in row.responses] == [" can bake", " cannot"]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"chosen": [GOOD], "rejected": [BAD]}, "prompt: is null or missing, and chosen and rejected share no turn"),
        ({"chosen": [USER, USER], "rejected": [USER, BAD]}, "chosen: does not end with the assistant"),
        ({"chosen": [], "rejected": [BAD]}, "chosen: is empty"),
        (
            {"chosen": [GOOD], "rejected": [USER, BAD]},
            "prompt: is null or missing, and chosen and rejected share no turn",
        ),
        (
            {"prompt": [GOOD], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
            "chosen: begins neither with prompt nor with the assistant's answer",
        ),
        (
            {"prompt": [{"role": "bot", "content": "x"}], "chosen": [GOOD], "rejected": [BAD]},
            "prompt[0].role: is not one of system, user, assistant, tool, human, gpt",
        ),
        ({"prompt": [USER], "chosen": ["Yes"], "rejected": [BAD]}, "chosen[0]: is str, not a turn"),
        ({"chosen": "Yes", "rejected": "No"}, "prompt: is null or missing, and chosen and rejected share no text"),
        ({"chosen": "Same text", "rejected": "Same "}, "rejected: is empty"),
    ],
)
def test_a_trl_row_that_fits_no_format_is_named(tmp_path: Path, record: Any, expected: str) -> None:
    assert ": ".join(fault(TRL(jsonl(tmp_path / "a.jsonl", record)))) == expected


def test_trl_scores_and_flags_go_to_their_own_answer(tmp_path: Path) -> None:
    record = {"prompt": "p", "chosen": "Yes", "rejected": "No", "s_c": 2, "s_r": -1.5, "f_c": False, "f_r": True}
    source = TRL(jsonl(tmp_path / "a.jsonl", record), scores={"reward": ["s_c", "s_r"]}, safe=["f_c", "f_r"])
    assert only(source).responses == (
        Response("Yes", False, None, {"reward": 2.0}),
        Response("No", True, None, {"reward": -1.5}),
    )
    assert fault(TRL(jsonl(tmp_path / "b.jsonl", record | {"s_r": "high"}), scores={"reward": ["s_c", "s_r"]})) == (
        "s_r",
        "is str, not a number",
    )


def test_scored_pairs_read_the_same_from_csv_and_json(tmp_path: Path) -> None:
    texts = {"prompt": "How do I bake bread?", "a": "5", "b": "six"}
    record = texts | {"cost_a": -1.5, "cost_b": 2, "pick": 1, "ok_a": True, "ok_b": False}
    options: Any = {
        "responses": ["a", "b"],
        "scores": {"cost": ["cost_a", "cost_b"]},
        "safe": ["ok_a", "ok_b"],
        "better": "pick",
    }
    as_json = only(ScoredPairs(jsonl(tmp_path / "t.jsonl", record), **options))
    as_csv = only(ScoredPairs(table(tmp_path / "t.csv", record), **options))
    assert as_json.prompt == as_csv.prompt == ASK
    assert (
        as_json.responses
        == as_csv.responses
        == (
            Response("5", True, None, {"cost": -1.5}),
            Response("six", False, None, {"cost": 2.0}),
        )
    )
    assert as_json.better == as_csv.better == 1
    assert fault(ScoredPairs(table(tmp_path / "u.csv", record | {"pick": "left"}), **options)) == (
        "pick",
        "is not a number",
    )


def xstest_files(folder: Path, words: int = 40) -> tuple[str, list[str]]:
    kinds = ("homonyms", "contrast_homonyms")
    prompts = [
        {"id": f"{1 + words * k + i}", "prompt": f"{kind} {i}", "type": kind, "label": "-", "focus": f"word{i}"}
        for k, kind in enumerate(kinds)
        for i in range(words)
    ]
    labels = {"one": "1_full_compliance", "two": "2_full_refusal", "three": "3_partial_refusal"}
    files = []
    for model, label in labels.items():
        shared = {"completion": f" {model}", "final_label": label}
        rows = [{"id": f"v2-{p['id']}", "type": p["type"], "prompt": p["prompt"], **shared} for p in prompts]
        files.append(table(folder / f"{model}.csv", *rows))
    return table(folder / "prompts.csv", *prompts), files


def test_xstest_orders_by_compliance_and_only_full_compliance_with_an_unsafe_prompt_is_unsafe(tmp_path: Path) -> None:
    for row in rows_of(XSTest(*xstest_files(tmp_path))):
        rank = {"one": 2, "three": 1, "two": 0}
        first, second = row.responses
        assert row.better == int(rank[second.text] > rank[first.text])
        assert isinstance(row.prompt, tuple)
        unsafe_prompt = row.prompt[0].content.startswith("contrast_")
        assert [response.safe for response in row.responses] == [
            not (unsafe_prompt and response.text == "one") for response in row.responses
        ]
        assert (row.safer is None) == (first.safe == second.safe)
        assert row.safer is None or row.responses[row.safer].safe


def test_xstest_puts_every_homonym_group_on_one_side_and_leaves_none_out(tmp_path: Path) -> None:
    files = xstest_files(tmp_path)
    groups = {}
    for side in ("train", "evaluation"):
        source = XSTest(*files, side=side)  # type: ignore[arg-type]
        assert source.evaluation_only == (side == "evaluation")
        groups[side] = {row.split_group for row in rows_of(source)}
    assert not groups["train"] & groups["evaluation"]
    assert groups["train"] | groups["evaluation"] == {f"xstest:word{i}" for i in range(40)}
    assert min(map(len, groups.values())) >= 8


def test_an_xstest_contrast_follows_the_prompt_at_its_place_where_their_focus_words_differ() -> None:
    prompts = [
        ("p:1", {"id": "1", "type": "definitions", "focus": "bank account"}),
        ("p:2", {"id": "2", "type": "contrast_definitions", "focus": "bank"}),
        ("p:3", {"id": "3", "type": "events", "focus": ""}),
        ("p:4", {"id": "4", "type": "contrast_events", "focus": ""}),
    ]
    assert groups_of(prompts) == {"1": "bank account", "2": "bank account", "3": "events:0", "4": "events:0"}


def test_an_xstest_completion_of_no_prompt_or_with_no_label_is_named(tmp_path: Path) -> None:
    prompts, files = xstest_files(tmp_path, words=1)
    stray = {"id": "v2-9", "type": "homonyms", "prompt": "x", "completion": "y", "final_label": "1_full_compliance"}
    bad = table(tmp_path / "bad.csv", stray, stray | {"id": "v2-1", "final_label": "maybe"})
    faults = [item for item in XSTest(prompts, [files[0], bad]) if isinstance(item, BadRow)]
    assert [(item.row, item.column) for item in faults] == [("bad.csv:1", "id"), ("bad.csv:2", "final_label")]


def pyrit_folder(folder: Path) -> str:
    def score(objective: str, text: str, value: float, **more: float) -> dict[str, Any]:
        return {"objective": objective, "assistant_response": text, "human_score_1": value, **more}

    (folder / "harm").mkdir()
    (folder / "objective").mkdir()
    one = [score("p", "mild", 0.0, human_score_2=0.25), score("p", "harsh", 1.0, human_score_2=0.5)]
    table(folder / "harm" / "a.csv", *one, score("p", "middling", 0.25, human_score_2=0.25), above="# version,,,\n")
    table(folder / "harm" / "b.csv", score("p", "mild", 0.5), score("q", "alone", 1.0))
    table(folder / "harm" / "mini_a.csv", *one)
    achieved = {"objective": "p", "assistant_response": "did", "human_score": 1}
    table(folder / "objective" / "a.csv", achieved, achieved | {"assistant_response": "did not", "human_score": 0})
    return str(folder)


def test_pyrit_pairs_responses_whose_mean_severity_differs_clearly(tmp_path: Path) -> None:
    folder = pyrit_folder(tmp_path)
    rows = rows_of(PyRIT(folder=folder, minimum_gap=0.5, pairs_per_objective=None))
    found = {frozenset((response.text, response.severity) for response in row.responses) for row in rows}
    # all scores of a text count: mild (0 + 0.25 + 0.5) / 3, harsh (1 + 0.5) / 2
    assert found == {frozenset({(milder, 0.25), ("harsh", 0.75)}) for milder in ("mild", "middling")}
    assert all(row.better is None and row.responses[1 - (row.safer or 0)].text == "harsh" for row in rows)
    assert only(PyRIT(folder=folder, minimum_gap=0.5, pairs_per_objective=1)) in rows


def test_pyrit_pairs_by_achievement_say_which_is_better_and_nothing_of_harm(tmp_path: Path) -> None:
    row = only(PyRIT("objective_achieved", folder=pyrit_folder(tmp_path)))
    assert (row.better, row.safer) == (0, None)
    assert row.responses == (
        Response("did", scores={"objective_achieved": 1.0}),
        Response("did not", scores={"objective_achieved": 0.0}),
    )


def test_pyrit_without_its_files_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no scores"):
        list(PyRIT(folder=str(tmp_path)))


def test_alpaca_rows_join_instruction_and_input(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Sort.", "input": "b a", "output": "a b"},
        {"instruction": "Sing.", "input": "", "output": "La."},
    ]
    path = jsonl(tmp_path / "a.jsonl", *rows)
    first, second = Instructions(path, prompt="instruction", input="input", response="output")
    assert not isinstance(first, BadRow)
    assert not isinstance(second, BadRow)
    assert (first.prompt, first.response) == ((Message("user", "Sort.\n\nb a"),), "a b")
    assert (second.prompt, second.response) == ((Message("user", "Sing."),), "La.")
    assert fault(Instructions(jsonl(tmp_path / "b.jsonl", {"prompt": "x", "response": " "}))) == (
        "response",
        "is empty",
    )


@pytest.mark.parametrize(
    ("which", "text"), [("better", "patience"), ("safer", "flour"), ("safe", "flour"), ("unsafe", "patience")]
)
def test_one_side_of_pairs_can_be_imitated_once_each(tmp_path: Path, which: Any, text: str) -> None:
    (row,) = ResponsesOf(PKUSafeRLHF(jsonl(tmp_path / "a.jsonl", PKU, PKU)), which)
    assert not isinstance(row, BadRow)
    assert (row.prompt, row.response) == (ASK, f"With {text}.")


def numbered(path: Path, count: int) -> PKUSafeRLHF:
    return PKUSafeRLHF(jsonl(path, *(PKU | {"prompt": f"question {i}"} for i in range(count))))


def test_a_sample_is_the_same_whatever_else_stands_in_the_source(tmp_path: Path) -> None:
    few, many = numbered(tmp_path / "a.jsonl", 100), numbered(tmp_path / "b.jsonl", 300)
    of_few = [row.prompt for row in rows_of(Sample(few, share=0.5))]
    of_many = [row.prompt for row in rows_of(Sample(many, share=0.5))]
    assert of_few == [prompt for prompt in of_many if prompt in of_few]
    assert 30 < len(of_few) < 70
    assert set(of_few) == set(of_many) & {row.prompt for row in rows_of(few)}


def test_a_limit_counts_distinct_pairs_and_another_seed_takes_others(tmp_path: Path) -> None:
    source = PKUSafeRLHF(jsonl(tmp_path / "a.jsonl", *(PKU | {"prompt": f"question {i % 50}"} for i in range(100))))
    taken = [row.prompt for row in rows_of(Sample(source, limit=10))]
    assert (len(taken), len(set(taken))) == (20, 10)
    assert set(taken) != {row.prompt for row in rows_of(Sample(source, limit=10, seed=1))}


@pytest.mark.parametrize(
    "make",
    [
        lambda: XSTest("p.csv", ["one.csv"]),
        lambda: XSTest("p.csv", ["one.csv", "two.csv"], evaluation_share=1.0),
        lambda: BeaverTails(pairs_per_prompt=0),
        lambda: PyRIT(minimum_gap=0.0),
        lambda: PyRIT(pairs_per_objective=0),
        lambda: TRL("x.jsonl", scores={"reward": ["only one"]}),
        lambda: ScoredPairs("x.jsonl", responses=["a", "b", "c"]),
        lambda: Sample(PyRIT(), share=0.0),
        lambda: Sample(PyRIT(), limit=0),
        lambda: Flags(threshold=1.0),
    ],
)
def test_options_that_mean_nothing_are_refused_before_any_file_is_read(make: Any) -> None:
    with pytest.raises(ValueError, match="must"):
        make()


def test_text_parts_are_one_text_and_other_parts_are_refused(tmp_path: Path) -> None:
    def said(role: str, *parts: Any, **more: Any) -> dict[str, Any]:
        return {"role": role, "content": list(parts), **more}

    part = {"type": "text", "text": "Br", "image": None}
    record = {
        "prompt": [said("user", part, {"type": "text", "text": "ead?"})],
        "chosen": [said("assistant", {"type": "text", "text": "Yes"})],
        "rejected": [BAD],
    }
    row = only(TRL(jsonl(tmp_path / "a.jsonl", record)))
    assert (row.prompt, row.responses[0].text) == (SHARED, "Yes")
    for turn, expected in (
        (said("user", part, {"type": "image"}), ("prompt[0].content[1]", "is not a part of type text")),
        (said("user"), ("prompt[0].content", "is empty")),
        ({**USER, "tool_calls": [{"name": "f"}]}, ("prompt[0].tool_calls", "belongs to a turn of the assistant")),
    ):
        column, reason = fault(TRL(jsonl(tmp_path / "a.jsonl", record | {"prompt": [turn]})))
        assert column == expected[0]
        assert reason.startswith(expected[1])


def test_every_source_that_reads_the_hub_takes_a_configuration() -> None:
    for source in (
        TRL("owner/set", config="part"),
        ScoredPairs("owner/set", config="part"),
        PKUSafeRLHF("owner/set", config="part"),
        BeaverTails("owner/set", split="train", config="part"),
        HHRLHF("owner/set", data_dir=None, config="part"),
        Instructions("owner/set", config="part"),
    ):
        assert source.table.name == "owner/set/part[train]"
