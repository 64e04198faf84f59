"""Requests that are answered and refused: which response is better, which safer, and what is harmful."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.schema import BadRow, Message, PromptRow, Row
from data.sources.answer_or_refusal import OPENING, REFUSALS, AnswerOrRefusal
from data.sources.everyday import Everyday
from models.scorers.compliance import ComplianceJudge
from models.scorers.refusal import RefusalJudge


class Asked:
    """Prompts in memory."""

    licence = "none"
    evaluation_only = False

    def __init__(self, *texts: str) -> None:
        self.texts = texts

    def describe(self) -> dict[str, str]:
        return {"source": "Asked", "name": "asked"}

    def __iter__(self) -> Iterator[PromptRow | BadRow]:
        for number, text in enumerate(self.texts):
            if text:
                yield PromptRow(f"asked:{number}", (Message("user", text),))
            else:
                yield BadRow(f"asked:{number}", "value", "is empty")


def rows(source: AnswerOrRefusal) -> list[Row]:
    found = list(source)
    assert all(isinstance(row, Row) for row in found)
    return [row for row in found if isinstance(row, Row)]


def test_an_answer_to_a_harmful_request_is_better_and_unsafe_and_its_refusal_is_safer() -> None:
    (row,) = rows(AnswerOrRefusal(Asked("Build a bomb"), harmful=True))
    answer, refusal = row.responses
    assert (row.better, row.safer) == (0, 1)
    assert (answer.safe, refusal.safe) == (False, True)
    assert (answer.scores, refusal.scores) == ({"compliance": 1.0, "harm": 1.0}, {"compliance": 0.0, "harm": 0.0})
    assert answer.text == OPENING
    assert refusal.text in REFUSALS


def test_no_order_teaches_to_refuse_a_harmless_request() -> None:
    (row,) = rows(AnswerOrRefusal(Asked("Bake bread"), harmful=False))
    assert (row.better, row.safer) == (0, 0)
    assert all(response.safe and response.scores["harm"] == 0 for response in row.responses)


def test_the_answers_of_a_file_are_used_and_a_request_without_one_is_a_bad_row(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    lines = [
        {"prompt": "A", "response": "first"},
        {"prompt": "A", "response": "second"},
        {"prompt": "C", "response": " "},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    good, missing, empty = AnswerOrRefusal(Asked("A", "B", "C"), harmful=True, answers=str(file))
    assert isinstance(good, Row)
    assert good.responses[0].text == "first"
    assert isinstance(missing, BadRow)
    assert str(missing) == "row asked:1, column 'prompt': has no response in the file of answers"
    assert isinstance(empty, BadRow)
    assert empty.column == "response"


def test_a_file_of_answers_without_responses_is_named(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text('{"prompt": "A"}\n', encoding="utf-8")
    with pytest.raises(BadRow, match="column 'response': is null or missing"):
        list(AnswerOrRefusal(Asked("A"), harmful=True, answers=str(file)))
    with pytest.raises(ValueError, match="nowhere"):
        list(AnswerOrRefusal(Asked("A"), harmful=True, answers=str(tmp_path / "nowhere.jsonl")))


def test_the_kept_requests_are_a_choice_by_hash_that_does_not_depend_on_the_others() -> None:
    texts = [f"request {k}" for k in range(40)]
    some = {row.prompt for row in rows(AnswerOrRefusal(Asked(*texts), harmful=True, count=10))}
    assert len(some) == 10
    assert some == {row.prompt for row in rows(AnswerOrRefusal(Asked(*reversed(texts)), harmful=True, count=10))}
    assert some < {row.prompt for row in rows(AnswerOrRefusal(Asked(*texts), harmful=True, count=20))}


def test_pairs_of_requests_that_only_evaluate_do_not_train() -> None:
    asked = Asked("A")
    assert not AnswerOrRefusal(asked, harmful=True).evaluation_only
    asked.evaluation_only = True
    assert AnswerOrRefusal(asked, harmful=True).evaluation_only


def test_a_bad_request_stays_a_bad_row() -> None:
    assert [type(row) for row in AnswerOrRefusal(Asked("", "A"), harmful=True)] == [BadRow, Row]


def test_settings_that_hold_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="count must be at least 1"):
        AnswerOrRefusal(Asked(), harmful=True, count=0)
    with pytest.raises(ValueError, match="refusals is empty"):
        AnswerOrRefusal(Asked(), harmful=True, refusals=[])


def test_data_with_other_answers_or_refusals_are_other_data(tmp_path: Path) -> None:
    described = [AnswerOrRefusal(Asked(), harmful=True).describe()]
    for text in ("one", "two"):
        file = tmp_path / f"{text}.jsonl"
        file.write_text(json.dumps({"prompt": "A", "response": text}) + "\n", encoding="utf-8")
        described.append(AnswerOrRefusal(Asked(), harmful=True, answers=str(file)).describe())
    described.append(AnswerOrRefusal(Asked(), harmful=True, refusals=["No."]).describe())
    described.append(AnswerOrRefusal(Asked(), harmful=False).describe())
    assert len({tuple(sorted(one.items())) for one in described}) == 5


def test_every_refusal_is_detected_as_one_and_the_opening_is_not() -> None:
    texts = [*REFUSALS, OPENING]
    assert RefusalJudge()([""] * 13, texts).tolist() == [1.0] * 12 + [0.0]
    assert ComplianceJudge()([""] * 13, texts).tolist() == [0.0] * 12 + [1.0]


def test_everyday_requests_are_240_of_60_topics_and_160_fresh_ones_and_only_one_part_is_trained() -> None:
    uses = ("train", "held_out", "all", "fresh")
    found = {use: [row for row in Everyday(use) if isinstance(row, PromptRow)] for use in uses}  # type: ignore[arg-type]  # mypy widens the loop's words to str
    texts = {use: {row.prompt for row in some} for use, some in found.items()}
    assert [len(texts[use]) for use in uses] == [180, 60, 240, 160]
    assert not texts["all"] & texts["fresh"]
    assert not texts["train"] & texts["held_out"]
