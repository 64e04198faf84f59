"""The scorer of PeCAN: beta times the log-ratio of two models, as the pair computes it and as transformers does."""

from dataclasses import replace

import pytest
import torch

from models.scorers.log_ratio import LogRatioScore
from models.scorers.score_text import ScoreText
from models.sources import TinyLlama

MODEL, REFERENCE = TinyLlama(layers=1, seed=0), TinyLlama(layers=1, seed=1)
PROMPTS = ["Who are you?", "How tall is it?", "Who are you?"]
RESPONSES = ["Nobody.", "It is 12 feet, I think, and growing.", ""]


def by_hand(source: TinyLlama, prompt: str, response: str) -> float:
    """The sum of log-probs of the response's tokens, in float64, from a forward pass of one text."""
    prompt_ids, response_ids = ScoreText(source.load_tokenizer()).parts(prompt, response)
    ids = torch.tensor([[*prompt_ids, *response_ids]])
    with torch.no_grad():
        logp = source.load_model().double().eval()(ids).logits[0].log_softmax(-1)
    at = range(len(prompt_ids) - 1, ids.shape[1] - 1)
    return sum(float(logp[place, ids[0, place + 1]]) for place in at)


@pytest.mark.parametrize("batch_tokens", [1, 8192])
def test_a_score_is_beta_times_the_log_ratio_with_the_stop_token(batch_tokens: int) -> None:
    scorer = LogRatioScore(MODEL, REFERENCE, beta=0.3, batch_tokens=batch_tokens)
    found = scorer(PROMPTS, RESPONSES)
    expected = [
        0.3 * (by_hand(MODEL, *both) - by_hand(REFERENCE, *both)) for both in zip(PROMPTS, RESPONSES, strict=True)
    ]
    torch.testing.assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-4, atol=1e-5)
    assert scorer.outputs == ("reward",)


def test_as_a_cost_it_has_the_other_sign() -> None:
    reward = LogRatioScore(MODEL, REFERENCE)(PROMPTS, RESPONSES)
    cost = LogRatioScore(MODEL, REFERENCE, gives="cost")(PROMPTS, RESPONSES)
    assert torch.equal(cost, -reward)
    assert reward.abs().max() > 0.01


def test_a_model_has_no_log_ratio_to_itself() -> None:
    assert torch.equal(LogRatioScore(MODEL, replace(MODEL))(PROMPTS, RESPONSES), torch.zeros(3))


def test_scores_that_are_kept_belong_to_both_models_and_the_settings() -> None:
    one = LogRatioScore(MODEL, REFERENCE).digest()
    assert one == LogRatioScore(replace(MODEL), replace(REFERENCE), batch_tokens=1).digest()
    others = [LogRatioScore(REFERENCE, MODEL), LogRatioScore(MODEL, TinyLlama(layers=1, seed=2))]
    others += [LogRatioScore(MODEL, REFERENCE, beta=1.0), LogRatioScore(MODEL, REFERENCE, gives="cost")]
    assert len({one, *(other.digest() for other in others)}) == 5


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="beta must be > 0"):
        LogRatioScore(MODEL, REFERENCE, beta=0.0)
    with pytest.raises(ValueError, match="gives must be one of reward, cost"):
        LogRatioScore(MODEL, REFERENCE, gives="safety")  # type: ignore[arg-type]  # the mistake


def test_a_score_that_is_not_finite_is_refused_with_its_response(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = LogRatioScore(MODEL, REFERENCE)
    scorer(PROMPTS, RESPONSES)
    whole = scorer.pair.both_logp
    monkeypatch.setattr(scorer.pair, "both_logp", lambda s: whole(s)._replace(policy=torch.full((3,), torch.nan)))
    with pytest.raises(ValueError, match=r"gave the log-ratio nan for the response 'Nobody\.'"):
        scorer(PROMPTS, RESPONSES)
