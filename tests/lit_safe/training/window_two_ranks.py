"""Run by ``test_ranks.py``: a fit on two gloo ranks that is saved inside a logging window and resumed."""

import sys
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer

from lit_safe.anchors.reference_support import ReferenceSupport
from tests.lit_safe.pair_world import aligned, pairs, trainer

SAVED = 2  # steps of the four of the first window


class Kept(Callback):
    """Saves a checkpoint inside the first window, and keeps what is logged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[int, dict[str, float]] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        publish = pl_module.publish

        def note(prefix: str, values: Any) -> None:
            publish(prefix, values)
            seen = trainer.callback_metrics.items()
            self.rows[trainer.global_step] = {k: float(v) for k, v in seen if "/perf/" not in k}

        pl_module.publish = note

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == SAVED and not self.path.exists():
            trainer.save_checkpoint(self.path)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    found = []
    for start in (None, folder / "inside.ckpt"):
        kept = Kept(folder / "inside.ckpt")
        run = trainer(folder, devices=2, strategy="ddp", max_steps=6, log_every_n_steps=4, callbacks=[kept])
        data = pairs(pairs_per_step=5, micro_batch_pairs=2)
        run.fit(aligned(anchor=ReferenceSupport()), data, ckpt_path=start, weights_only=True)
        found.append(kept.rows)
    torch.save(found, folder / f"{run.global_rank}.pt")
