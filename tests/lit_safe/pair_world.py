"""A real (tiny) language model, and pairs about fruit for it: what modules, doctor, export and ranks are tested on."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor

from data.annotators.scores import Score, Scores
from data.module import PreferenceData
from data.schema import Message, Response, Row, SftRow
from data.sft import SftData
from lit_safe.objectives import DPO
from lit_safe.training.module import PreferenceAlignment
from lit_safe.types import IGNORE, Objective, PackedSequences
from models.pair import PolicyReference
from models.sources import TinyLlama

FRUIT = ("apple", "pear", "plum", "quince", "medlar", "fig", "date")
MIXED = ((-1.0, -1.0), (-1.0, 1.0), (1.0, -1.0), (1.0, 1.0))  # SafeDPO keeps, keeps, swaps, drops


class Fruit:
    """``count`` pairs, the costs of ``MIXED`` in turn: of 32, 26 are for training, 4 held out, 2 for dual steps."""

    licence = "CC0-1.0"

    def __init__(self, count: int = 32, same_length: bool = False) -> None:
        self.count, self.same_length = count, same_length

    def describe(self) -> dict[str, str]:
        return {"name": "fruit", "count": str(self.count)}

    def prompt(self, i: int) -> tuple[Message, ...]:
        return (Message("user", f"Which fruit is number {i:03d}?"),)

    def texts(self, i: int) -> tuple[str, str]:
        fruit = FRUIT[i % len(FRUIT)]
        one, two = (f"{fruit} {i}", f"no {fruit}, and {i} again" if i % 2 else f"no {i}")
        return (f"{one:<12}"[:12], f"{two:<12}"[:12]) if self.same_length else (one, two)

    def __iter__(self) -> Iterator[Row]:
        for i in range(self.count):
            costs = MIXED[i % 4]
            first, second = (
                Response(text, scores={"cost": cost, "reward": reward})
                for text, cost, reward in zip(self.texts(i), costs, (1.0, 0.0), strict=True)
            )
            yield Row(f"fruit:{i}", self.prompt(i), (first, second), better=0)


class FruitTalk(Fruit):
    """The same prompts with one response to imitate."""

    def __iter__(self) -> Iterator[SftRow]:
        for i in range(self.count):
            yield SftRow(f"fruit:{i}", self.prompt(i), self.texts(i)[0])


def pairs(source: Any = None, **options: Any) -> PreferenceData:
    """Fruit pairs for the tiny model's tokenizer."""
    annotator = Scores((Score("cost"),), Score("reward"))
    merged = {"annotator": annotator, "pairs_per_step": 4, "micro_batch_pairs": 4, "max_length": 128, **options}
    data = PreferenceData([source or Fruit()], **merged)
    data.connect(TinyLlama())
    return data


def talk(source: Any = None, **options: Any) -> SftData:
    """Fruit responses to imitate."""
    data = SftData([source or FruitTalk()], **{"rows_per_step": 4, "micro_batch_rows": 4, "max_length": 128, **options})
    data.connect(TinyLlama())
    return data


def adamw(lr: float) -> Callable[..., torch.optim.Optimizer]:
    return partial(torch.optim.AdamW, lr=lr, weight_decay=0.0)


def aligned(objective: Objective | None = None, lr: float = 1e-3, pair: Any = None, **options: Any) -> Any:
    """A PreferenceAlignment of the tiny model."""
    return PreferenceAlignment(pair or PolicyReference(TinyLlama()), objective or DPO(), adamw(lr), **options)


def moved(module: Any) -> Any:
    """The module with a policy unlike its reference."""
    module.configure_model()
    with torch.no_grad():
        for k, parameter in enumerate(p for p in module.parameters() if p.requires_grad):
            parameter += 0.05 * torch.sin(torch.arange(parameter.numel()) + k).view_as(parameter)
    return module


def trainer(folder: Path | None = None, **options: Any) -> Trainer:
    """One quiet process on the CPU, without held-out pairs."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    quiet |= {"enable_checkpointing": False, "use_distributed_sampler": False, "limit_val_batches": 0}
    quiet |= {"accelerator": "cpu", "devices": 1, "log_every_n_steps": 1}
    return Trainer(default_root_dir=folder, **{**quiet, **options})


def weights(module: Any) -> Tensor:
    """Everything that trains, flat."""
    return torch.cat([p.detach().flatten().clone() for p in module.parameters() if p.requires_grad])


def plain_logp(model: Any, sequences: PackedSequences) -> Tensor:
    """[N] the definition: transformers' own logits of each sequence alone, in float64."""
    sums = []
    for start, end in itertools.pairwise(sequences.cu_seqlens.tolist()):
        with torch.no_grad():
            logits = model(input_ids=sequences.input_ids[start:end][None]).logits[0].double()
        target = sequences.target[start:end]
        scored = target != IGNORE
        sums.append(logits.log_softmax(-1)[scored].gather(-1, target[scored][:, None]).sum())
    return torch.stack(sums)
