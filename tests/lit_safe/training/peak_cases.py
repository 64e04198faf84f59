"""Fits random Llamas, each in a process of its own, and prints what was announced and what was used.

``python -m tests.lit_safe.training.peak_cases`` prints a line of JSON for each shape and adaptation.
``python -m tests.lit_safe.training.peak_cases ranks`` does so for two ranks, a line for each.
"""

import json
import os
import sys
import tempfile
import warnings
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from lightning import Callback

from lit_safe.training.reference_plan import memory_of_a_step
from models.adaptation import Full, LastLayers, LoRA
from models.pair import PolicyReference
from models.sharding.strategy import FullySharded
from models.sources import Description, TinyLlama
from ops.sequence_logratio.peak_memory import lower, peak_mib
from tests.lit_safe.pair_world import Fruit, aligned, pairs, trainer
from tests.lit_safe.training.sharded_two_ranks import forked

KINDS: dict[str, Any] = {"full": Full(), "last layers": LastLayers(2), "lora": LoRA(r=8)}


@dataclass(frozen=True)
class Shape:
    """A Llama with 16,384 tokens of vocabulary, and steps of ``pairs`` whose responses have ``length`` bytes."""

    layers: int
    width: int
    tied: bool
    pairs: int
    length: int
    tokens: int  # of a micro-batch

    def load_model(self) -> transformers.PreTrainedModel:
        """The model, the same at every reading."""
        config = transformers.LlamaConfig(
            vocab_size=16_384,
            hidden_size=self.width,
            intermediate_size=self.width * 8 // 3 // 64 * 64,
            num_hidden_layers=self.layers,
            num_attention_heads=8,
            num_key_value_heads=4,
            tie_word_embeddings=self.tied,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return transformers.LlamaForCausalLM(config)

    def load_tokenizer(self) -> transformers.PreTrainedTokenizerBase:
        """The tokenizer of bytes."""
        return TinyLlama().load_tokenizer()

    def describe(self) -> Description:
        """A name."""
        return Description("a random Llama")


SHAPES = {
    "several micro-batches": Shape(6, 512, tied=True, pairs=2, length=16, tokens=130),
    "one micro-batch of one pair, untied": Shape(4, 768, tied=False, pairs=1, length=100, tokens=4096),
    "long responses": Shape(4, 384, tied=True, pairs=2, length=200, tokens=4096),
}


CASES = [(name, kind) for name in SHAPES for kind in KINDS]


class Wordy(Fruit):
    """Responses of exactly ``length`` bytes."""

    def __init__(self, length: int) -> None:
        super().__init__(12)
        self.length = length

    def texts(self, i: int) -> tuple[str, str]:
        return ("apple pear " * 40)[: self.length], ("plum quince " * 40)[: self.length]


class Announced(Callback):
    """Takes the announcement before the first step."""

    total = 0

    def __init__(self, trim: bool = False) -> None:
        self.parts: dict[str, int] = {}
        self.trim = trim

    def on_train_start(self, trainer: Any, module: Any) -> None:
        needed = memory_of_a_step(module, trainer, trainer.datamodule)
        self.parts, self.total = needed._asdict(), needed.total
        if self.trim:  # the allocator of a CPU keeps what reading the model has freed, one layer at a time
            lower()


def fitted(source: Any, kind: str, shape: Shape, *, trim: bool = False, **options: Any) -> Announced:
    """Train two steps."""
    announced = Announced(trim)
    limit = {"micro_batch_pairs": None, "micro_batch_tokens": shape.tokens}
    data = pairs(Wordy(shape.length), pairs_per_step=shape.pairs, max_length=1024, **limit)
    module = aligned(lr=1e-5, pair=PolicyReference(source, KINDS[kind]), precompute_reference=False)
    with tempfile.TemporaryDirectory() as folder:
        trainer(folder, max_steps=2, callbacks=[announced], **options).fit(module, data)  # type: ignore[arg-type]  # a data module by its methods
    return announced


def measured(name: str, kind: str) -> dict[str, Any]:
    """The bytes that were announced, and the peak over what the process held before, in MiB."""
    fitted(TinyLlama(), kind, SHAPES[name])  # a fork has none of the pages of libraries; running them reads them again
    lower()
    before = peak_mib()
    announced = fitted(SHAPES[name], kind, SHAPES[name])
    parts = {part: round(size / 2**20, 1) for part, size in announced.parts.items()}
    return {"shape": name, "kind": kind, "said": announced.total / 2**20, "used": peak_mib() - before, "parts": parts}


TWO_RANKS: dict[str, Any] = {"ddp": lambda: "ddp", "fsdp2": FullySharded}


def measured_on_a_rank(rank: int, strategy: str) -> None:
    """Print the announced bytes and the peak of the steps of one of two ranks, in MiB."""
    shape = SHAPES["several micro-batches"]
    fitted(TinyLlama(), "full", shape, devices=2, strategy=TWO_RANKS[strategy]())
    lower()
    before = peak_mib()
    announced = fitted(shape, "full", shape, trim=True, devices=2, strategy=TWO_RANKS[strategy]())
    parts = {part: round(size / 2**20, 1) for part, size in announced.parts.items()}
    found = {"strategy": strategy, "rank": rank, "said": announced.total / 2**20, "used": peak_mib() - before}
    print("\n" + json.dumps({**found, "parts": parts}), flush=True)


def on_two_ranks() -> None:
    """Print what each of two ranks announced and used."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    fitted(TinyLlama(), "full", SHAPES["several micro-batches"])
    for strategy in sys.argv[2:] or TWO_RANKS:
        status = forked(2, lambda rank, strategy=strategy: measured_on_a_rank(rank, strategy))
        assert status == [0, 0], (strategy, status)


def main() -> None:
    """Print all cases. A tiny fit comes first, so that every library is imported before."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    fitted(TinyLlama(), "full", SHAPES["several micro-batches"])
    for name, kind in CASES:
        child = os.fork()
        if not child:
            try:
                print(json.dumps(measured(name, kind)), flush=True)
            finally:
                os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    on_two_ranks() if sys.argv[1:2] == ["ranks"] else main()
