"""A step of a random Llama at any size, the operations that it needs, and the exponent with which a measure grows.

Letters: P tokens of a prompt, R of a response, B pairs, V vocabulary, S = P + R.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import transformers
from scipy import stats

from lit_safe.sequences import pack_sequences
from models.pair import PolicyReference
from models.sources import Description, TinyLlama

Size = dict[str, int]
"""``prompt`` P, ``response`` R, ``pairs`` B, ``vocabulary`` V."""

FACTORS = (1, 2, 3, 4, 6)


class Width(NamedTuple):
    """What stays the same: hidden width, inner width of the MLP, decoder layers, attention heads."""

    hidden: int = 32
    inner: int = 64
    layers: int = 2
    heads: int = 2


TINY = Width()


class Sized:
    """A Llama with a vocabulary of any size."""

    def __init__(self, width: Width, vocabulary: int, attention: str) -> None:
        self.width, self.vocabulary, self.attention = width, vocabulary, attention

    def load_model(self) -> transformers.PreTrainedModel:
        config = transformers.LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width.hidden,
            intermediate_size=self.width.inner,
            num_hidden_layers=self.width.layers,
            num_attention_heads=self.width.heads,
            num_key_value_heads=self.width.heads,
            max_position_embeddings=8192,
            tie_word_embeddings=False,
            attn_implementation=self.attention,
        )
        return transformers.LlamaForCausalLM(config)

    def load_tokenizer(self) -> Any:
        return TinyLlama().load_tokenizer()

    def describe(self) -> Description:
        return Description("a random Llama")


@cache
def loaded(width: Width, vocabulary: int, layout: Any, attention: str, backend: str = "reference") -> PolicyReference:
    """The pair of a size, all weights of the policy training."""
    pair = PolicyReference(Sized(width, vocabulary, attention), layout=layout, backend=backend)
    pair.load()
    return pair


def step(pair: PolicyReference, size: Size, around: AbstractContextManager[Any]) -> None:
    """A forward pass of policy and reference over all pairs, and a backward pass, inside the context ``around``."""
    prompts = [[i % 250] * size["prompt"] for i in range(size["pairs"]) for _ in (0, 1)]
    responses = [[i % 250] * size["response"] for i in range(2 * size["pairs"])]
    sequences = pair.laid_out(pack_sequences(prompts, responses))
    with around:
        policy, reference = pair.both_logp(sequences)
        (policy - reference).sum().backward()


def rows_of_a_pair(size: Size, layout: str) -> tuple[int, int]:
    """Rows of a pair and their length: two padded rows with the prompt in each, or one shared row."""
    prompt, response = size["prompt"], size["response"]
    return (2, prompt + response) if layout == "padded" else (1, prompt + 2 * response)


def operations(width: Width, size: Size, layout: str) -> int:
    """The arithmetic: forward passes of both models, and a backward pass of twice that, at 2 operations a product.

    Attention has two products of S² D each.
    """
    rows, length = rows_of_a_pair(size, layout)
    linear = 4 * width.hidden * width.hidden + 3 * width.hidden * width.inner
    decoder = width.layers * rows * (2 * linear * length + 4 * width.hidden * length**2)
    head = 2 * 2 * size["response"] * width.hidden * size["vocabulary"]
    return size["pairs"] * 4 * (decoder + head)


def angles(width: Width, size: Size, layout: str) -> int:
    """What both forward passes add where transformers computes the angles of rotary positions as a product."""
    rows, length = rows_of_a_pair(size, layout)
    return size["pairs"] * 2 * 2 * (width.hidden // width.heads // 2) * rows * length


def exponent(base: Size, name: str, measure: Callable[[Size], float]) -> tuple[float, float]:
    """The slope of log(measure) over log(size) at five sizes, with the half-width of its 95 % interval."""
    x = np.log([base[name] * factor for factor in FACTORS])
    y = np.log([measure({**base, name: base[name] * factor}) for factor in FACTORS])
    slope, start = np.polyfit(x, y, 1)
    rest, freedom = y - slope * x - start, len(x) - 2
    error = np.sqrt((rest**2).sum() / freedom / ((x - x.mean()) ** 2).sum())
    return float(slope), float(stats.t.ppf(0.975, freedom) * error)
