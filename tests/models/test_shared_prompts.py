"""Prompts shared among their responses: the same responses as without sharing, from fewer tokens."""

import pytest
import torch
import transformers

from lit_safe.hashing import uniforms
from models.bench import compare
from models.sampling import generate

REPEATED = [[1, 2, 3, 4, 5, 6, 7], [9], [30, 31, 32], [1, 2, 3, 4, 5, 6, 7], [30, 31, 32], [9], [30, 31, 32]]
SLIDING = {"vocab_size": 97, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
           "num_key_value_heads": 1, "intermediate_size": 32, "max_position_embeddings": 128}  # fmt: skip


def sample(model, prompts=REPEATED, share_prompts=True, steps=10, stop_ids=(96,)):
    numbers = uniforms(len(prompts) * steps, "shared").reshape(len(prompts), steps)
    return generate(model, prompts, numbers, temperature=1.0, stop_ids=stop_ids, share_prompts=share_prompts)


def tokens_seen(model) -> list[int]:
    """Numbers of tokens of each later call of the model's decoder, padding included."""
    seen: list[int] = []

    def note(module, args, kwargs):
        seen.append((args[0] if args else kwargs["input_ids"]).numel())

    model.base_model.register_forward_pre_hook(note, with_kwargs=True)
    return seen


def test_every_architecture_gives_the_same_responses_with_and_without_sharing(architecture, random_model):
    model = random_model(architecture)
    shared, apart = sample(model), sample(model, share_prompts=False)
    assert shared == apart
    assert len({tuple(response) for response in shared}) > 3


@pytest.mark.parametrize("window", [3, 64])
def test_a_window_of_attention_is_the_same_with_and_without_sharing(window):
    config = transformers.MistralConfig(**SLIDING, sliding_window=window)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.MistralForCausalLM(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    assert sample(model) == sample(model, share_prompts=False)


def test_a_model_with_a_recurrent_state_computes_every_prompt_itself():
    config = transformers.MambaConfig(vocab_size=97, hidden_size=16, num_hidden_layers=2, state_size=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.MambaForCausalLM(config)
    seen = tokens_seen(model)
    assert sample(model) == sample(model, share_prompts=False)
    assert seen[0] == len(REPEATED) * 7


def test_each_distinct_prompt_is_computed_once(random_model):
    model = random_model("llama")
    seen = tokens_seen(model)
    sample(model, steps=1)
    assert seen == [3 * 6, 7]  # three prompts without their last token, then every response's last prompt token
    seen.clear()
    sample(model, REPEATED[:3], steps=1)
    assert seen == [3 * 7]  # none is repeated: nothing to share
    seen.clear()
    sample(model, [[4], [4]], steps=1)
    assert seen == [2]  # nothing lies before the last token


def test_responses_do_not_depend_on_who_shares_the_batch(random_model):
    model = random_model("qwen2")
    numbers = uniforms(6 * 8, "alone").reshape(6, 8)
    prompts = [[1, 2, 3, 4]] * 4 + [[7, 8], [7, 8]]
    together = generate(model, prompts, numbers, temperature=1.0, stop_ids=[96])
    alone = [generate(model, [p], numbers[i : i + 1], temperature=1.0, stop_ids=[96])[0] for i, p in enumerate(prompts)]
    assert together == alone


def test_the_bench_prints_both_times_and_that_the_responses_are_equal(random_model, capsys):
    compare(random_model("llama").eval(), prompts=2, samples=3, prompt_tokens=8, new_tokens=4, rounds=1)
    first, times, equal = capsys.readouterr().out.splitlines()
    assert first.startswith("6 responses of 4 tokens to 2 prompts of 8 tokens")
    assert "s, once per prompt" in times
    assert equal == "equal responses 100 %"
