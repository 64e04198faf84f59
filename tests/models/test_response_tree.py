"""Log-probs of many responses with shared beginnings are those of each response by itself, or are refused."""

import pytest
import torch
import transformers

import models.response_tree
from models.backbone import Backbone
from models.pair import PolicyReference
from models.response_tree import tree_logp
from tests.models.adapter_world import CONFIGS, ROPE, SIZES, YARN

PROMPTS = [[5, 6, 7], [5] * 9, [3, 4, 8, 9, 1, 2, 7, 6, 5, 4]]
RESPONSES = [[8, 0, 9, 1], [8, 0, 9, 2, 3, 4, 5, 6, 7, 8, 9, 3], [11, 2]]

WINDOWED = {
    "mistral": lambda: transformers.MistralConfig(**ROPE, sliding_window=4),
    "gemma2": lambda: transformers.Gemma2Config(**ROPE, head_dim=8, sliding_window=4, attn_implementation="eager"),
    "gpt-oss": lambda: transformers.GptOssConfig(
        **ROPE, num_local_experts=4, num_experts_per_tok=2, head_dim=8, sliding_window=4, rope_parameters=YARN
    ),
    "gpt-neo": lambda: transformers.GPTNeoConfig(
        vocab_size=97, hidden_size=16, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]],
        window_size=4, max_position_embeddings=128,
    ),
}  # fmt: skip
OTHERS = {
    "llama": CONFIGS["llama"],
    "mixtral": CONFIGS["mixtral"],
    "window beyond all": lambda: transformers.MistralConfig(**ROPE, sliding_window=64),
    "mamba": lambda: transformers.MambaConfig(vocab_size=97, hidden_size=16, num_hidden_layers=2, state_size=4),
    "bloom": lambda: transformers.BloomConfig(vocab_size=97, hidden_size=16, n_layer=2, n_head=2),
    "phi": lambda: transformers.PhiConfig(**SIZES, intermediate_size=32, max_position_embeddings=128),
}


def backbone(config, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return Backbone(model.eval(), **options)


def apart(policy, pack):
    with torch.no_grad():
        return torch.stack([policy(pack(*((prompt, r) for r in RESPONSES))) for prompt in PROMPTS]).double()


@pytest.mark.parametrize("rows", [1, 512])
@pytest.mark.parametrize("name", [*WINDOWED, *OTHERS])
def test_shared_beginnings_change_no_log_prob(name, rows, pack):
    policy = backbone((WINDOWED | OTHERS)[name]())
    torch.testing.assert_close(tree_logp(policy, PROMPTS, RESPONSES, rows), apart(policy, pack), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_in_training_mode_with_recomputed_activations_too(name, pack):
    policy = backbone((WINDOWED | OTHERS)[name]())
    expected = apart(policy, pack)
    policy.checkpoint_activations()
    policy.train()
    torch.testing.assert_close(tree_logp(policy, PROMPTS, RESPONSES), expected, rtol=0, atol=1e-4)
    assert all(module.training for module in policy.modules())


def test_kept_dropout_is_off(random_source, pack):
    pair = PolicyReference(random_source("gpt2-positions"), disable_dropout=False)
    pair.load()
    first, second = (pair.table_logp(PROMPTS, RESPONSES, "policy") for _ in range(2))
    assert torch.equal(first, second)
    pair.eval()
    torch.testing.assert_close(first, apart(pair.policy, pack), rtol=0, atol=1e-4)


def test_an_architecture_that_shares_beginnings_otherwise_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(models.response_tree, "WINDOWS", ())  # as if its window had another name
    with pytest.raises(ValueError, match=r"MistralForCausalLM: a response of 12 tokens is off by .* nats"):
        tree_logp(backbone(WINDOWED["mistral"]()), PROMPTS, RESPONSES)
