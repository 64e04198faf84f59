"""Pairs with exactly one safe response, as rows of a safe response beside a harmful one."""

import pytest
import torch

from data.schema import BadRow, HarmfulRow, Message, Response, Row
from data.sources.one_safe import OneSafe
from models.scorers.refusal import RefusalJudge

PROMPT = (Message("user", "How do I pick a lock?"),)


class Pairs:
    licence = "CC0-1.0"

    def __init__(self, *rows):
        self.rows = rows

    def describe(self):
        return {"name": "pairs"}

    def __iter__(self):
        return iter(self.rows)


def pair(name, first, second, **options):
    (text, safe), (other, other_safe) = first, second
    return Row(name, PROMPT, (Response(text, safe, **options), Response(other, other_safe)))


REFUSED = pair("r", ("Take a pick.", False), ("I'm sorry, I can't help with that.", True))
ANSWERED = pair("a", ("Ask a locksmith.", True), ("Take a pick.", False))
OTHERS = (
    pair("both safe", ("One.", True), ("Two.", True)),
    pair("both unsafe", ("One.", False), ("Two.", False)),
    pair("unknown", ("One.", None), ("Two.", True)),
    pair("turns", ("One.", True), ("Two.", False), turns=(Message("assistant", "One."),)),
)


def test_rows_are_those_with_exactly_one_safe_response():
    found = list(OneSafe(Pairs(REFUSED, ANSWERED, *OTHERS)))
    assert found == [
        HarmfulRow("r", PROMPT, "I'm sorry, I can't help with that.", harmful="Take a pick."),
        HarmfulRow("a", PROMPT, "Ask a locksmith.", harmful="Take a pick."),
    ]


def test_a_judge_of_refusals_keeps_refusals():
    assert [row.id for row in OneSafe(Pairs(ANSWERED, REFUSED, ANSWERED), only=RefusalJudge())] == ["r"]


def test_a_template_takes_the_place_of_every_safe_response():
    found = list(OneSafe(Pairs(REFUSED, ANSWERED), template="No."))
    assert [(row.response, row.harmful) for row in found] == [("No.", "Take a pick.")] * 2


def test_an_unusable_row_stays_in_its_place():
    bad = BadRow("x", "prompt", "is empty")
    assert [row.id if isinstance(row, HarmfulRow) else row for row in OneSafe(Pairs(REFUSED, bad, REFUSED))] == [
        "r",
        bad,
        "r",
    ]
    assert list(OneSafe(Pairs(ANSWERED, bad), only=RefusalJudge())) == [bad]


def test_every_setting_is_named_in_the_cache_key():
    sources = [
        OneSafe(Pairs()),
        OneSafe(Pairs(), template="No."),
        OneSafe(Pairs(), only=RefusalJudge()),
        OneSafe(Pairs(), only=RefusalJudge(opening=100)),
    ]
    assert len({tuple(source.describe().items()) for source in sources}) == 4
    with pytest.raises(ValueError, match=r"settings that are no JSON values: give it a method digest"):
        OneSafe(Pairs(), only=type("Odd", (), {"__init__": lambda self: setattr(self, "x", {1})})()).describe()


def test_a_judge_that_gives_no_score_names_the_row():
    with pytest.raises(ValueError, match="gave NaN for the safe response of row a"):
        list(OneSafe(Pairs(REFUSED, ANSWERED), only=lambda prompts, texts: torch.tensor([1.0, float("nan")])))
    with pytest.raises(ValueError, match="gave 1 scores of 2 responses"):
        list(OneSafe(Pairs(REFUSED, ANSWERED), only=lambda prompts, texts: torch.tensor([1.0])))


@pytest.mark.parametrize("options", [{"only": RefusalJudge(), "template": "No."}, {"template": " "}])
def test_settings_that_exclude_each_other_are_refused(options):
    with pytest.raises(ValueError, match="template"):
        OneSafe(Pairs(), **options)
