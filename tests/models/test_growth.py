"""How the operations and the memory of a step grow with each of its sizes: not faster than their arithmetic.

Operations and bytes are counted, so the exponents are the same on every machine. Letters: P tokens of a prompt, R of a
response, B pairs, V vocabulary, S = P + R.
"""

from contextlib import nullcontext
from functools import cache

import numpy as np
import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from lit_safe.sequences import pack_sequences
from models.pair import PolicyReference
from models.sources import Description, TinyLlama

WIDTH, INNER, LAYERS, HEADS = 32, 64, 2, 2
BASE = {"prompt": 24, "response": 24, "pairs": 1, "vocabulary": 256}
FACTORS = (1, 2, 3, 4, 6)


class Sized:
    """A Llama with a vocabulary of any size."""

    def __init__(self, vocabulary, attention):
        self.vocabulary, self.attention = vocabulary, attention

    def load_model(self):
        config = transformers.LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=WIDTH,
            intermediate_size=INNER,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            tie_word_embeddings=False,
            attn_implementation=self.attention,
        )
        return transformers.LlamaForCausalLM(config)

    def load_tokenizer(self):
        return TinyLlama().load_tokenizer()

    def describe(self):
        return Description("a random Llama")


@cache
def loaded(vocabulary, layout, attention):
    pair = PolicyReference(Sized(vocabulary, attention), layout=layout, backend="reference")
    pair.load()
    return pair


def step(size, layout, attention, around):
    """A forward pass of policy and reference over all pairs, and a backward pass, inside the context ``around``."""
    pair = loaded(size["vocabulary"], layout, attention)
    prompts = [[i % 250] * size["prompt"] for i in range(size["pairs"]) for _ in (0, 1)]
    responses = [[i % 250] * size["response"] for i in range(2 * size["pairs"])]
    sequences = pair.laid_out(pack_sequences(prompts, responses))
    with around:
        policy, reference = pair.both_logp(sequences)
        (policy - reference).sum().backward()
    return pair


def counted(size, layout):
    """Operations of a step."""
    if layout == "shared":
        step(size, layout, "eager", nullcontext())  # a length that is new takes a pass more, for its masks
    counter = FlopCounterMode(display=False)
    step(size, layout, "eager", counter)  # the counter knows no fused attention of a CPU
    return counter.get_total_flops()


def held(size, layout):
    """Bytes that autograd keeps for the backward pass of a step, without the weights."""
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    pair = step(size, layout, "sdpa", torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor))
    weights = {p.untyped_storage()._cdata for p in pair.parameters()}
    return sum(storage.nbytes() for key, storage in kept.items() if key not in weights)


def shape(size, layout):
    """Rows of a pair and their length: two padded rows with the prompt in each, or one shared row."""
    prompt, response = size["prompt"], size["response"]
    return (2, prompt + response) if layout == "padded" else (1, prompt + 2 * response)


def operations(size, layout):
    """The arithmetic: forward passes of both models, and a backward pass of twice that, at 2 operations a product.

    Attention has two products of S² D each.
    """
    rows, length = shape(size, layout)
    linear = 4 * WIDTH * WIDTH + 3 * WIDTH * INNER
    decoder = LAYERS * rows * (2 * linear * length + 4 * WIDTH * length**2)
    head = 2 * 2 * size["response"] * WIDTH * size["vocabulary"]
    return size["pairs"] * 4 * (decoder + head)


def angles(size, layout):
    """What both forward passes add where transformers computes the angles of rotary positions as a product."""
    rows, length = shape(size, layout)
    return size["pairs"] * 2 * 2 * (WIDTH // HEADS // 2) * rows * length


def exponent(name, measure):
    """The slope of log(measure) over log(size) at five sizes, with the half-width of its 95 % interval."""
    x = np.log([BASE[name] * factor for factor in FACTORS])
    y = np.log([measure({**BASE, name: BASE[name] * factor}) for factor in FACTORS])
    slope, start = np.polyfit(x, y, 1)
    rest = y - slope * x - start
    error = np.sqrt((rest**2).sum() / (len(x) - 2) / ((x - x.mean()) ** 2).sum())
    return slope, 3.18 * error  # Student's t with 3 degrees of freedom


@pytest.mark.parametrize("layout", ["padded", "shared"])
def test_a_step_counts_the_operations_that_its_sizes_need(layout):
    for name in BASE:
        size = {**BASE, name: BASE[name] * 3}
        assert counted(size, layout) - operations(size, layout) in (0, angles(size, layout))


@pytest.mark.parametrize("layout", ["padded", "shared"])
@pytest.mark.parametrize("name", BASE)
def test_no_size_grows_faster_than_its_arithmetic(name, layout):
    slope, error = exponent(name, lambda size: counted(size, layout))
    allowed, _ = exponent(name, lambda size: operations(size, layout))
    assert slope <= allowed + 1e-9
    assert error < 0.3
    bytes_slope, _ = exponent(name, lambda size: held(size, layout))
    # shared rows have a mask of S² numbers, padded ones have none
    assert bytes_slope <= 1 + (0.15 if layout == "shared" else 1e-9)
