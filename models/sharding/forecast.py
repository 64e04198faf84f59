"""``python -m models.sharding.forecast``: what a rank needs and how long a step takes, for sizes not tried here.

No weight is made: the models are on torch's meta device, where the same estimate as before a run measures what autograd
keeps. It takes the products of full training for fp32, so it counts one layer's activations up to twice. The table of
docs/scale.md is this command's output, and a test compares the two.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
import transformers

from lit_safe.precision import hold
from models.adaptation import Adaptation, Full, LoRA
from models.backbone import Backbone
from models.memory import memory_estimate
from ops.sequence_logratio.slabs import BLOCK_BYTES

GIB = 2**30
DEVICE_GIB = 80
"""Memory of an H100 SXM5, in GB (NVIDIA's data sheet); CUDA and its libraries take some of it."""
FLOPS = 989e12
"""Dense bf16 operations per second of an H100 SXM5 (the same sheet)."""
USED = 0.4
"""Share of them that training is assumed to reach. Nothing here was measured."""
LINK = {1: 450e9, 8: 450e9, 64: 50e9}
"""Bytes per second and rank and direction: NVLink 4 inside a machine, one 400 Gbit/s port per GPU between machines."""
TOKENS, SCORED = 8192, 4096
"""Tokens and scored tokens of a micro-batch on a rank: four pairs of 1,024 tokens a response, half of them scored."""


class Size(NamedTuple):
    """The shape of a Llama: 70B shares keys and values between eight heads each."""

    name: str
    layers: int
    width: int
    feed_forward: int
    heads: int
    key_heads: int
    vocabulary: int
    tied: bool = False


SIZES = (
    Size("1.5B", 28, 1536, 8960, 12, 2, 151_936, tied=True),  # Qwen2.5-1.5B
    Size("7B", 32, 4096, 11008, 32, 32, 32_000),  # Llama-2-7B
    Size("13B", 40, 5120, 13824, 40, 40, 32_000),  # Llama-2-13B
    Size("70B", 80, 8192, 28672, 64, 8, 32_000),  # Llama-2-70B
)
METHODS: tuple[tuple[str, Adaptation], ...] = (("full", Full()), ("LoRA", LoRA(r=16)), ("QLoRA", LoRA(r=16)))
RANKS = (1, 8, 64)
NF4 = 0.516
"""Bytes of a weight in nf4: 4 bits, and 0.127 bits of scales (Dettmers et al. 2023, arXiv:2305.14314, section 3)."""


class Row(NamedTuple):
    """One line of the table. Sizes are GiB on each rank, times are seconds of a micro-batch."""

    size: str
    method: str
    ranks: int
    held: float
    passing: float
    outside: float
    compute: float
    exchange: float

    @property
    def total(self) -> float:
        """The peak inside a step."""
        return self.held + self.passing

    def cells(self) -> list[str]:
        """The row's cells. Computing and exchanging overlap, so the step takes the longer of the two at best."""
        fits = "yes" if max(self.total, self.outside) < 0.95 * DEVICE_GIB * 1e9 / GIB else "no"
        numbers = (self.held, self.passing, self.total, self.outside)
        times = (self.compute, self.exchange)
        shown = [*(f"{n:.1f}" for n in numbers), fits, *(f"{t:.2f}" for t in times)]
        return [self.size, self.method, str(self.ranks), *shown]


def on_paper(size: Size, adaptation: Adaptation) -> Backbone:
    """The policy without numbers: a frozen base in bf16, what trains in fp32."""
    config = transformers.LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=size.feed_forward,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_heads,
        tie_word_embeddings=size.tied,
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
        policy = Backbone(adaptation.apply(model), layout="packed")
    hold(policy.parameters(), "float32")
    return policy


def row(size: Size, method: str, policy: Backbone, ranks: int) -> Row:
    """The forecast for one method on ``ranks`` GPUs, with gradient checkpointing and stored reference log-probs."""
    parameters = list(policy.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    count = sum(p.numel() for p in parameters)
    needed = memory_estimate(policy, [], tokens=TOKENS, scored=SCORED, checkpointed=True, sharers=ranks)
    logits = needed.logits + 4 * (BLOCK_BYTES["cuda"] - BLOCK_BYTES["cpu"])  # the blocks of a GPU are larger
    base = sum(p.nbytes for p in parameters if not p.requires_grad)
    adapter_bytes = 4 * trained
    if method == "QLoRA":  # the layers in nf4 on every rank; embeddings and head stay in bf16
        outer = 2 * size.vocabulary * size.width * (1 if size.tied else 2)
        base = int((base - outer) / 2 * NF4) + outer
    held = needed.weights + needed.gradients + needed.optimizer
    if method == "QLoRA":  # not sharded: every rank has the whole base, the adapter, its gradients and its moments
        held = base + 4 * adapter_bytes
    gathered = 0 if ranks == 1 or method == "QLoRA" else sum(p.nbytes for p in parameters)
    passing = needed.activations + logits + (0 if method == "QLoRA" else needed.buckets)
    moved = _moved(base if method == "LoRA" else 0, adapter_bytes, ranks)
    # 2 P operations a token forwards, 4 P backwards, 2 P to recompute; frozen weights have no gradient of their own
    per_token = (8 if method == "full" else 6) * count
    return Row(
        size.name,
        method,
        ranks,
        held / GIB,
        passing / GIB,
        (held + gathered) / GIB,
        per_token * TOKENS / (FLOPS * USED),
        moved / LINK[ranks],
    )


def _moved(base: int, trained: int, ranks: int) -> float:
    """Bytes that a rank sends for a micro-batch: weights gathered twice, gradients scattered once."""
    return (ranks - 1) / ranks * (2 * (base + trained) + trained)


HEAD = ("model", "method", "GPUs", "held", "passing", "in a step", "outside", "fits", "compute s", "exchange s")


def lines() -> Iterator[str]:
    """The forecast as the lines of a Markdown table."""
    yield _line(HEAD)
    yield _line(["---"] * len(HEAD))
    for size, (method, adaptation) in itertools.product(SIZES, METHODS):
        policy = on_paper(size, adaptation)
        for ranks in RANKS:
            yield _line(row(size, method, policy, ranks).cells())


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    logging.disable()
    for line in lines():
        print(line, flush=True)
