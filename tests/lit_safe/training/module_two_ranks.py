"""Run by ``test_ranks.py``: fits a tiny language model on as many gloo ranks as it is told, and keeps what they got."""

import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from torch import Tensor

from lit_safe.constraint.costs.rollout import RolloutCost
from lit_safe.constraint.dual_ascent import DualAscent
from lit_safe.objectives import ConstrainedDPO, SafeDPO
from lit_safe.training.module import PreferenceAlignment
from lit_safe.types import PackedBatch
from models.pair import PolicyReference
from models.sources import TinyLlama
from tests.lit_safe.pair_world import pairs, trainer, weights

OBJECTIVES = {"safe_dpo": SafeDPO(), "c_dpo": ConstrainedDPO()}


class Length:
    """A response costs its characters, and an empty one nothing: all of them cost more than the limit below."""

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        return torch.tensor([len(text) / 10 for text in responses])


class Kept(Callback):
    """What this rank saw and ended with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.steps: Counter[str] = Counter()

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: list[PackedBatch], batch_idx: int) -> None:
        present = torch.cat([b.present for b in batch])
        unsafe = [torch.cat([getattr(b.label.unsafe, side) for b in batch]) for side in ("chosen", "rejected")]
        self.steps["all"] += 1
        self.steps["partial"] += int(batch[0].pairs_in_step) < trainer.datamodule.pairs_per_step
        self.steps["filler alone"] += not bool(present.any())
        self.steps["dropped alone"] += bool(present.any()) and bool((unsafe[0] & unsafe[1])[present].all())

    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        seen = {name: float(value) for name, value in trainer.callback_metrics.items() if "/perf/" not in name}
        kept = {"weights": weights(module), "multiplier": float(module.multiplier), "seen": seen, "steps": self.steps}
        torch.save({**kept, "steps": dict(self.steps)}, self.folder / f"{trainer.global_rank}.pt")


if __name__ == "__main__":
    devices, name, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    folder.mkdir(parents=True, exist_ok=True)  # by every rank: each runs this file
    torch.set_num_threads(1)
    ahead = devices > 1 and name == "c_dpo"
    lr = 0.5 if OBJECTIVES[name].reads_multiplier else 0.0
    dual = DualAscent(limit=0.0, lr=lr, estimator=RolloutCost(Length(), samples_per_prompt=3, max_new_tokens=8))
    # a step is the gradient itself: Adam would blow the rounding of a gradient near 0 up to a whole step
    optimizer = partial(torch.optim.SGD, lr=0.1)
    trainer(
        folder,
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=2,
        limit_val_batches=1.0,
        callbacks=[dual, Kept(folder)],
    ).fit(
        PreferenceAlignment(
            PolicyReference(TinyLlama()),
            OBJECTIVES[name],
            optimizer,
            multiplier=0.5,
            precompute_reference=ahead,  # each rank meets what another has scored
            reference_cache_dir=str(folder / "kept") if ahead else None,
        ),
        pairs(pairs_per_step=5, micro_batch_pairs=2, eval_batch_pairs=3, seed=1),  # a rank has unsafe pairs alone
    )
