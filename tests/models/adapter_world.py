"""Tiny models of kinds that adapters treat differently, and every choice of what an adapter touches."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import peft
import torch
import transformers

from models.sources import Description, TinyLlama

SIZES = {"vocab_size": 97, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
ROPE = {**SIZES, "intermediate_size": 32, "num_key_value_heads": 1, "max_position_embeddings": 128}
MOE = {**ROPE, "num_experts_per_tok": 2}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 64}

CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**ROPE),
    "llama-tied": lambda: transformers.LlamaConfig(**ROPE, tie_word_embeddings=True),
    "qwen2-tied": lambda: transformers.Qwen2Config(**ROPE, tie_word_embeddings=True),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=97, n_embd=16, n_layer=2, n_head=2, n_positions=128),
    "mixtral": lambda: transformers.MixtralConfig(**MOE, num_local_experts=4),
    "qwen3-moe": lambda: transformers.Qwen3MoeConfig(**MOE, num_experts=4, moe_intermediate_size=16, head_dim=8),
    "gpt-oss": lambda: transformers.GptOssConfig(**MOE, num_local_experts=4, head_dim=8, rope_parameters=YARN),
}


@dataclass(frozen=True)
class Small:
    """A random model of one of ``CONFIGS``, in fp32 or with weights in bf16."""

    name: str
    dtype: str = "float32"

    def load_model(self) -> transformers.PreTrainedModel:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = transformers.AutoModelForCausalLM.from_config(CONFIGS[self.name]())
            for parameter in model.parameters():
                parameter.data = (0.3 * torch.randn_like(parameter)).to(getattr(torch, self.dtype))
        return model.eval()

    def load_tokenizer(self) -> transformers.PreTrainedTokenizerBase:
        return TinyLlama().load_tokenizer()

    def describe(self) -> Description:
        return Description(self.name)


@dataclass(frozen=True)
class Own:
    """A user's own adaptation: any peft configuration."""

    config: peft.PeftConfig

    def apply(self, model: transformers.PreTrainedModel) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft's own words about what is refused here
            return peft.get_peft_model(model, self.config)


def nudge(pair: Any) -> None:
    """Move everything that trains, far enough to be seen."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for parameter in pair.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape))
