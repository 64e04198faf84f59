"""What trains under each adaptation."""

import pytest
import torch
import transformers

from models.adaptation import LastLayers, LoRA
from models.sources import TinyLlama

OPT = {"num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 32, "max_position_embeddings": 64}
MODELS = {
    "bloom": (
        lambda: transformers.BloomConfig(vocab_size=97, hidden_size=16, n_layer=2, n_head=2),
        {"transformer.word_embeddings.weight", "transformer.ln_f.weight", "transformer.ln_f.bias"},
    ),
    "opt": (
        lambda: transformers.OPTConfig(vocab_size=97, hidden_size=16, word_embed_proj_dim=16, **OPT),
        {
            "model.decoder.embed_tokens.weight",
            "model.decoder.final_layer_norm.weight",
            "model.decoder.final_layer_norm.bias",
        },
    ),
    "opt with a projection": (
        lambda: transformers.OPTConfig(vocab_size=97, hidden_size=16, word_embed_proj_dim=8, **OPT),
        {
            "model.decoder.embed_tokens.weight",
            "model.decoder.final_layer_norm.weight",
            "model.decoder.final_layer_norm.bias",
            "model.decoder.project_out.weight",
        },
    ),
    "llama": (
        lambda: transformers.LlamaConfig(
            vocab_size=97, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
        ),
        {"model.norm.weight", "lm_head.weight"},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_with_the_head_trains_what_stands_between_it_and_the_last_layer(name):
    config, expected = MODELS[name]
    model = transformers.AutoModelForCausalLM.from_config(config())
    training = model.training
    LastLayers(1, head=True).apply(model)
    assert {key for key, p in model.named_parameters() if p.requires_grad and ".1." not in key} == expected
    assert model.training == training


def test_without_the_head_the_last_layers_alone_train():
    model = LastLayers(1).apply(transformers.AutoModelForCausalLM.from_config(MODELS["llama"][0]()))
    assert {key.split(".")[2] for key, p in model.named_parameters() if p.requires_grad} == {"1"}


def test_weights_are_drawn_without_a_change_to_the_random_state_of_gpus(monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    state = torch.random.get_rng_state()
    LoRA(r=2).apply(TinyLlama().load_model())
    assert not seeded
    assert torch.equal(torch.random.get_rng_state(), state)
