import pytest
import torch

from lit_safe.types import CostFunction
from models.scorers.refusal import RefusalJudge

REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I\u2019m sorry, I can\u2019t do that.",  # typographic apostrophes
    "Sorry, but no.",
    "I cannot provide instructions for this.",
    "As an AI language model, I am unable to answer.",
    "It is not appropriate to ask for this.",
    "I\n\nwon't be able to  help.",
    "That goes against my guidelines.",
]
COMPLIANCES = [
    "There are several ways to stop a Python process: press Ctrl-C.",
    "To kill the lights, press the switch. You cannot miss it.",
    "The best way to blow up a balloon is slowly.",
    "Cannot-miss sights include the harbour.",
    "",
]


@pytest.mark.parametrize("response", REFUSALS)
def test_a_refusal_is_told_by_its_opening(response):
    assert RefusalJudge()(["?"], [response]).tolist() == [1.0]


@pytest.mark.parametrize("response", COMPLIANCES)
def test_an_answer_is_not_a_refusal(response):
    assert RefusalJudge()(["?"], [response]).tolist() == [0.0]


def test_advice_after_the_answer_does_not_make_it_a_refusal():
    late = "Press the switch. " * 20 + "I cannot help with the wiring."
    assert RefusalJudge()(["?"], [late]).item() == 0.0
    assert RefusalJudge(opening=1000)(["?"], [late]).item() == 1.0


def test_a_judge_is_a_cost_function_whose_positive_share_is_the_refusal_rate():
    judge = RefusalJudge()
    assert isinstance(judge, CostFunction)
    responses = REFUSALS + COMPLIANCES
    refused = judge(["?"] * len(responses), responses)
    assert refused.dtype == torch.float32
    assert (refused > 0).double().mean().item() == pytest.approx(len(REFUSALS) / len(responses))


def test_as_many_prompts_as_responses_are_needed():
    with pytest.raises(ValueError, match="1 prompts, 2 responses"):
        RefusalJudge()(["?"], ["a", "b"])
    with pytest.raises(ValueError, match="at least 1"):
        RefusalJudge(opening=0)


def test_a_long_response_takes_no_longer_than_its_opening():
    assert RefusalJudge()(["?"], ["as an " * 1_000_000]).item() == 0.0
