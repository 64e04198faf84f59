"""Tiny random models of several architectures, and token sequences to feed them."""

import pytest
import torch
import transformers

from lit_safe.types import IGNORE, PackedSequences
from models.sources import Description, TinyLlama

SIZES = {"vocab_size": 97, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
ROPE = {**SIZES, "intermediate_size": 32, "num_key_value_heads": 1, "max_position_embeddings": 128}

CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**ROPE),
    "llama-tied": lambda: transformers.LlamaConfig(**ROPE, tie_word_embeddings=True, attention_dropout=0.5),
    "qwen2": lambda: transformers.Qwen2Config(**ROPE),
    "gemma2-softcap": lambda: transformers.Gemma2Config(
        **ROPE, head_dim=8, final_logit_softcapping=2.0, attn_implementation="eager"
    ),
    "cohere-scale": lambda: transformers.CohereConfig(**ROPE, logit_scale=0.25),
    "granite-scale": lambda: transformers.GraniteConfig(**ROPE, logits_scaling=3.0),
    "gpt2-positions": lambda: transformers.GPT2Config(
        vocab_size=97, n_embd=16, n_layer=3, n_head=2, n_positions=128, resid_pdrop=0.5, attn_pdrop=0.5
    ),
    "gpt-neox": lambda: transformers.GPTNeoXConfig(
        **SIZES, intermediate_size=32, max_position_embeddings=128, attention_dropout=0.5, hidden_dropout=0.5
    ),
    "phi-bias": lambda: transformers.PhiConfig(**SIZES, intermediate_size=32, max_position_embeddings=128),
}


def _random_model(name: str, seed: int = 0) -> transformers.PreTrainedModel:
    """A model with weights large enough that its distributions are far from uniform."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]())
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model


class RandomSource:
    """A source of random models; its tokenizer is TinyLlama's and fits no better than it has to."""

    def __init__(self, name: str = "llama", seed: int = 0) -> None:
        self.name, self.seed = name, seed

    def load_model(self) -> transformers.PreTrainedModel:
        return _random_model(self.name, self.seed)

    def load_tokenizer(self) -> transformers.PreTrainedTokenizerBase:
        return TinyLlama().load_tokenizer()

    def describe(self) -> Description:
        return Description(self.name)


def _pack(*sequences: tuple[list[int], list[int]]) -> PackedSequences:
    """Lay (prompt, response) pairs of ids end to end, each response scored."""
    ids, target, position, bounds = [], [], [], [0]
    for prompt, response in sequences:
        whole = prompt + response
        ids += whole
        target += [IGNORE] * (len(prompt) - 1) + response + [IGNORE]
        position += range(len(whole))
        bounds.append(len(ids))
    return PackedSequences(*map(torch.tensor, (ids, target, position)), torch.tensor(bounds, dtype=torch.int32))


def _plain_logp(model: transformers.PreTrainedModel, prompt: list[int], response: list[int]) -> torch.Tensor:
    """The definition: log-softmax of the model's own logits, one sequence alone.

    In float64, because torch's fp32 log-softmax on a CPU is off by 1e-5 a token over 49 thousand tokens of vocabulary.
    """
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + response], device=model.device)).logits[0].double()
    logp = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return logp[range(len(response)), response].sum().float().cpu()


@pytest.fixture
def sequences() -> list[tuple[list[int], list[int]]]:
    """Prompts and responses of unequal lengths; token 0 and repeats are among them."""
    return [([5, 6, 7], [8, 0, 9, 0]), ([5, 6, 7], [8, 11]), ([1], [2]), ([3] * 9, [4, 3, 3, 4, 90, 0, 0])]


@pytest.fixture(params=CONFIGS)
def architecture(request):
    return request.param


@pytest.fixture
def random_model():
    return _random_model


@pytest.fixture
def random_source():
    return RandomSource


@pytest.fixture
def pack():
    return _pack


@pytest.fixture
def plain_logp():
    return _plain_logp
