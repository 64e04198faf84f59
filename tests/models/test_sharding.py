"""What can be divided over ranks: the units of a model, and one line for what cannot, before it is loaded."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from models.adaptation import LastLayers, LoRA
from models.pair import PolicyReference
from models.reference import AdapterOff, Checkpoint, FrozenCopy, NoReference
from models.sharding.plan import ShardingPlan, units_of
from models.sources import TinyLlama

PLAN = ShardingPlan(SimpleNamespace(size=lambda: 2), torch.device("cpu"))  # type: ignore[arg-type]
SMALL = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}

CONFIGS: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**SMALL, intermediate_size=32),
    "qwen2": lambda: transformers.Qwen2Config(**SMALL, intermediate_size=32, num_key_value_heads=1),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=32, n_embd=16, n_layer=3, n_head=2),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**SMALL, intermediate_size=32),
    "opt": lambda: transformers.OPTConfig(**SMALL, ffn_dim=32, word_embed_proj_dim=16),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_units_of_a_model_are_its_decoder_layers(kind: str) -> None:
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(CONFIGS[kind]())
    units = units_of(model)
    assert len(units) == 3
    assert len({type(unit) for unit in units}) == 1
    inside = {id(p) for unit in units for p in unit.parameters()}
    assert id(model.get_input_embeddings().weight) not in inside
    assert id(model.get_output_embeddings().weight) not in inside
    elsewhere = sum(p.numel() for p in model.parameters() if id(p) not in inside)
    assert elsewhere < sum(p.numel() for p in model.parameters())


def test_an_adapter_does_not_change_the_units() -> None:
    plain = TinyLlama().load_model()
    count = len(units_of(plain))
    adapted: Any = LoRA(r=2).apply(plain)
    assert len(units_of(adapted.get_base_model())) == count == plain.config.num_hidden_layers


def test_a_model_without_layers_is_named() -> None:
    model = TinyLlama().load_model()
    model.model.layers = nn.Sequential(*model.model.layers)  # no list of them
    for part in model.modules():
        if getattr(part, "_no_split_modules", None):
            part._no_split_modules = None
    with pytest.raises(ValueError, match=r"^LlamaForCausalLM cannot be sharded: it has no layers .*--trainer.strategy"):
        units_of(model)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"reference": Checkpoint(TinyLlama())},
            "cannot be sharded: use models.reference.FrozenCopy with dtype policy",
        ),
        ({"reference": FrozenCopy(dtype="bfloat16")}, "cannot be sharded: use models.reference.FrozenCopy"),
        ({"adaptation": LastLayers(1, cache_trunk=True)}, "adaptation.cache_trunk: not supported by sharded models"),
    ],
)
def test_what_cannot_be_sharded_is_one_line_before_it_is_loaded(options: Any, said: str) -> None:
    pair = PolicyReference(TinyLlama(), **options)
    with pytest.raises(ValueError, match=said) as caught:
        pair.shard_over(PLAN)
    assert "\n" not in str(caught.value)
    assert pair.policy is None
    assert not pair.sharded


@pytest.mark.parametrize(
    "options", [{}, {"adaptation": LoRA(r=2), "reference": AdapterOff()}, {"reference": NoReference()}]
)
def test_what_can_be_sharded_takes_the_plan(options: Any) -> None:
    pair = PolicyReference(TinyLlama(), **options)
    pair.shard_over(PLAN)
    assert pair.sharded
    assert pair.sharers == 2
