"""Language models of real shapes with random weights, so that a benchmark needs no download."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import transformers

from models.sources.source import Description
from models.sources.tiny_llama import TinyLlama

SHAPES = {  # hidden width, layers, heads, key-value heads, feed-forward width, vocabulary
    "0.5B": (896, 24, 14, 2, 4864, 151936),
    "1.5B": (1536, 28, 12, 2, 8960, 151936),
    "tiny": (64, 2, 4, 2, 128, 4096),
}
"""Shapes of Qwen2.5 (arXiv:2412.15115, table 1), and a small one for dry runs."""


@dataclass(frozen=True)
class RandomModel:
    """A Qwen2 model with random weights and a tied head. The tokenizer is one of bytes.

    Args:
        shape: A name in ``SHAPES``.
        dtype: Name of the weights' dtype.
    """

    shape: str
    dtype: str = "bfloat16"

    def load_model(self) -> transformers.PreTrainedModel:
        width, layers, heads, key_value_heads, wide, vocabulary = SHAPES[self.shape]
        config = transformers.Qwen2Config(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=wide,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=key_value_heads,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=0,
        )
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(0)
            return transformers.Qwen2ForCausalLM(config).to(getattr(torch, self.dtype))

    def load_tokenizer(self) -> transformers.PreTrainedTokenizerBase:
        return TinyLlama().load_tokenizer()

    def describe(self) -> Description:
        return Description(f"random Qwen2 of {self.shape}", licence="none needed")
