"""The enumerated probabilities are those of the model, and add up to one."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from data.oracle.truth.enumeration import FLOOR, enumerate_policy, with_malformed
from lit_safe.sequences import pack_sequences
from models.pair import PolicyReference
from models.sources import Description, TinyLlama

STOP = 0


class FewWords:
    """A random Llama of five tokens, far from uniform."""

    def load_model(self) -> transformers.PreTrainedModel:
        config = transformers.LlamaConfig(
            vocab_size=5, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            initializer_range=0.5, eos_token_id=STOP, pad_token_id=STOP, bos_token_id=None,
        )  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return transformers.LlamaForCausalLM(config)

    def load_tokenizer(self) -> transformers.PreTrainedTokenizerBase:
        return TinyLlama().load_tokenizer()

    def describe(self) -> Description:
        return Description("five words")


@pytest.fixture(scope="module")
def few_words() -> PolicyReference:
    pair = PolicyReference(FewWords())
    pair.load()
    with torch.no_grad():  # a policy that has left its reference
        for parameter in pair.parameters():
            parameter.add_(0.05 * torch.sin(torch.arange(parameter.numel())).view_as(parameter))
    return pair


def strings(longest: int) -> list[list[int]]:
    return [list(ids) for size in range(longest + 1) for ids in itertools.product(range(1, 5), repeat=size)]


@pytest.mark.parametrize("which", ["policy", "reference"])
def test_all_strings_up_to_a_length_and_all_longer_ones_share_the_whole_mass(
    few_words: PolicyReference, which: Any
) -> None:
    """What is not a string of up to two words that stops begins with three words."""
    prompts = [[1], [2, 3, 4], [4, 4]]
    logp_PK = enumerate_policy(few_words, prompts, [[*ids, STOP] for ids in strings(2)], which, batch=7)
    score = few_words.policy_logp if which == "policy" else few_words.reference_logp
    beginnings = [list(ids) for ids in itertools.product(range(1, 5), repeat=3)]
    with torch.no_grad():
        for row, prompt in enumerate(prompts):
            longer = score(pack_sequences([prompt] * len(beginnings), beginnings)).double().exp().sum()
            assert math.exp(logp_PK[row, -1]) == pytest.approx(float(longer), abs=1e-6)
    np.testing.assert_allclose(np.exp(logp_PK).sum(-1), 1, atol=1e-12)


def test_each_cell_is_the_response_scored_alone_whatever_the_batch(few_words: PolicyReference) -> None:
    responses = [[1, STOP], [2, 3, 4, 1, STOP], [STOP]]
    one, many = (enumerate_policy(few_words, [[1, 2], [3]], responses, batch=size) for size in (1, 512))
    np.testing.assert_allclose(one, many, atol=1e-5)
    with torch.no_grad():
        alone = float(few_words.policy_logp(pack_sequences([[3]], [responses[1]])))
    assert many[1, 1] == pytest.approx(alone, abs=1e-5)
    reference_PK = enumerate_policy(few_words, [[1, 2], [3]], responses, "reference")
    assert np.abs(reference_PK - many).max() > 0.01


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "autocast"])
def test_a_shared_beginning_scored_once_is_that_of_every_sequence(few_words: PolicyReference, autocast: bool) -> None:
    """Prompts and responses of many lengths, so that padding, positions and what is remembered all have to be right."""
    prompts, responses = [[1], [2, 3, 4], [4, 4], [3, 1, 2, 4, 4]], [[*ids, STOP] for ids in strings(3)] + [[3] * 9]
    for which, score in (("policy", few_words.policy_logp), ("reference", few_words.reference_logp)):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            alone = torch.stack([score(pack_sequences([p] * len(responses), responses)) for p in prompts])
        for rows in (1, 200):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                together = few_words.table_logp(prompts, responses, which, rows)
            if autocast:  # layers round to bf16 by the shape of the work; a head in fp32 would be 0.015 nats off
                assert (together.float() - alone).abs().mean() < 0.01
            else:
                torch.testing.assert_close(together.float(), alone, atol=1e-4, rtol=1e-5)


class Plain(torch.nn.Module):
    """The same pair with nothing but sequences to ask it for."""

    def __init__(self, pair: PolicyReference) -> None:
        super().__init__()
        self.inner = pair
        self.policy_logp, self.reference_logp = pair.policy_logp, pair.reference_logp


def test_a_pair_without_tables_is_enumerated_by_sequences(few_words: PolicyReference) -> None:
    responses = [[*ids, STOP] for ids in strings(2)]
    one, other = (enumerate_policy(pair, [[1, 2], [3]], responses, batch=5) for pair in (few_words, Plain(few_words)))
    np.testing.assert_allclose(one, other, atol=1e-4)


def test_enumerating_draws_nothing_and_keeps_flags_and_gradients(few_words: PolicyReference) -> None:
    few_words.train()
    few_words.policy.model.eval()  # a part that somebody froze
    flags = [part.training for part in few_words.modules()]
    torch.manual_seed(3)
    enumerate_policy(few_words, [[1]], [[STOP]])
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert drawn == torch.rand(1)
    assert [part.training for part in few_words.modules()] == flags
    assert all(parameter.grad is None for parameter in few_words.parameters())
    few_words.train()


def test_malformed_mass_below_rounding_is_set_to_the_floor() -> None:
    logp_PR = np.log(np.array([[0.5, 0.25], [0.6, 0.4 + 1e-5]]))
    logp_PK = with_malformed(logp_PR)
    np.testing.assert_allclose(np.exp(logp_PK[0]), [0.5, 0.25, 0.25], atol=1e-15)
    assert math.exp(logp_PK[1, -1]) == pytest.approx(FLOOR, rel=1e-4)
    assert np.exp(logp_PK[1]).sum() == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("wrong", [0.2, math.nan])
def test_probabilities_that_cannot_be_name_their_prompt(wrong: float) -> None:
    with pytest.raises(ValueError, match="prompt 1"):
        with_malformed(np.log(np.array([[0.5, 0.5], [0.9, wrong]])))


@pytest.mark.parametrize("responses", [[[1, STOP], [1, STOP]], [[1], [2], [1, 2]], [[], [1]]])
def test_responses_that_would_be_counted_twice_are_refused(
    few_words: PolicyReference, responses: list[list[int]]
) -> None:
    with pytest.raises(ValueError, match="stop token"):
        enumerate_policy(few_words, [[1]], responses)
