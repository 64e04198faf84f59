"""Run by ``test_kto_ranks.py``: a step of KTO on as many gloo ranks as it is told, the policy unlike its reference."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer

from lit_safe.objectives import KTO
from lit_safe.training.module import PreferenceAlignment
from lit_safe.types import PackedBatch
from models.pair import PolicyReference
from models.sources import TinyLlama
from tests.lit_safe.pair_world import Fruit, moved, pairs, trainer, weights

LR = 0.5
STEP = {"pairs_per_step": 6, "micro_batch_pairs": 2, "seed": 3}  # three pairs a rank, in micro-batches of 2 and 1


def world() -> tuple[Any, Any]:
    """The module before its step, and its data."""
    optimizer = partial(torch.optim.SGD, lr=LR)  # a step is the gradient itself
    module = PreferenceAlignment(PolicyReference(TinyLlama()), KTO(1.0), optimizer, gradient_clip_norm=None)
    return module, pairs(Fruit(16), **STEP)


class Kept(Callback):
    """Moves the policy away from its reference before the step, and keeps what this rank saw and ended with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: dict[str, Any] = {}

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        moved(module)

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: list[PackedBatch], batch_idx: int) -> None:
        self.seen["pairs"] = [int(p) for b in batch for p in b.pair_id[b.present]]
        with module.mismatch.of_step(module.pair, batch):
            self.seen["point"] = float(module.mismatch.of(module.pair, batch[0]))

    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        loss = float(trainer.callback_metrics["train/loss"])
        torch.save({**self.seen, "loss": loss, "weights": weights(module)}, self.folder / f"{trainer.global_rank}.pt")


if __name__ == "__main__":
    devices, folder = int(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)  # by every rank: each runs this file
    torch.set_num_threads(1)
    trainer(folder, devices=devices, strategy="ddp", max_steps=1, callbacks=[Kept(folder)]).fit(*world())
