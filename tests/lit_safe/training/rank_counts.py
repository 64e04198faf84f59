"""Run by ``test_rank_counts.py``: the same fits on one, two and three ranks, each rank whole (DDP) or a part (FSDP2).

All ranks are forked from one process after the imports. A fit leaves what each rank ended with in a file.
"""

import sys
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import Callback, Trainer

from lit_safe.constraint.costs.rollout import RolloutCost
from lit_safe.constraint.dual_ascent import DualAscent
from lit_safe.objectives import DPO, ConstrainedDPO, SafeDPO
from lit_safe.sharded import whole
from lit_safe.training.module import PreferenceAlignment
from lit_safe.types import PackedBatch
from models.pair import PolicyReference
from models.sharding.strategy import FullySharded
from models.sources import TinyLlama
from tests.lit_safe.pair_world import pairs, trainer
from tests.lit_safe.training.module_two_ranks import Length
from tests.lit_safe.training.sharded_two_ranks import forked

STRATEGIES: dict[str, Any] = {
    "alone": lambda: "auto",
    "ddp": lambda: "ddp",
    "fsdp2": FullySharded,
    "offload": lambda: FullySharded(offload=True),
}


class Case(NamedTuple):
    """One fit."""

    kind: str
    """``c_dpo`` with a dual step each epoch, ``safe_dpo``, which leaves out pairs, or DPO in ``fp32`` or ``bf16``."""
    strategy: str
    ranks: int

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.strategy}-{self.ranks}"


CASES = [
    *(
        Case(kind, strategy, ranks)
        for kind in ("c_dpo", "safe_dpo")
        for strategy, ranks in [("alone", 1), ("ddp", 2), ("ddp", 3), ("fsdp2", 2), ("fsdp2", 3)]
    ),
    Case("c_dpo", "offload", 2),
    Case("fp32", "alone", 1),
    Case("bf16", "alone", 1),
    Case("bf16", "fsdp2", 2),
]


class Kept(Callback):
    """What this rank saw, and ended with."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.steps: Counter[str] = Counter()
        self.rows: list[int] = []
        self.start = torch.empty(0)

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        self.start = trained(module)

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: list[PackedBatch], batch_idx: int) -> None:
        present = torch.cat([b.present for b in batch])
        self.steps["all"] += 1
        self.steps["partial"] += int(batch[0].pairs_in_step) < trainer.datamodule.pairs_per_step
        self.steps["filler alone"] += not bool(present.any())
        self.rows.append(int(present.sum()))

    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        seen = {name: float(value) for name, value in trainer.callback_metrics.items() if "/perf/" not in name}
        kept = {"weights": trained(module), "start": self.start, "multiplier": float(module.multiplier), "seen": seen}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        torch.save({**kept, "steps": dict(self.steps), "rows": self.rows}, self.file)


def trained(module: Any) -> torch.Tensor:
    """Every weight that trains, whole and flat."""
    return torch.cat([whole(p.detach()).cpu().flatten() for p in module.parameters() if p.requires_grad])


def fit(case: Case, folder: Path, rank: int) -> None:
    """One fit as one of the case's ranks."""
    objective = {"c_dpo": ConstrainedDPO(), "safe_dpo": SafeDPO(), "fp32": DPO(), "bf16": DPO()}[case.kind]
    callbacks: list[Callback] = [Kept(folder / f"{rank}.pt")]
    if case.kind == "c_dpo":
        estimator = RolloutCost(Length(), samples_per_prompt=3, max_new_tokens=8)
        callbacks.insert(0, DualAscent(limit=0.0, lr=0.5, estimator=estimator))
    trainer(
        folder,
        devices=case.ranks,
        strategy=STRATEGIES[case.strategy](),
        precision="bf16-mixed" if case.kind == "bf16" else "32-true",
        max_epochs=2,
        limit_val_batches=1.0,
        callbacks=callbacks,
    ).fit(
        PreferenceAlignment(
            PolicyReference(TinyLlama()),
            objective,
            # a step is the gradient itself: Adam would blow the rounding of a gradient near 0 up to a whole step
            partial(torch.optim.SGD, lr=0.1, momentum=0.5),
            multiplier=0.5,
            gradient_clip_norm=0.5,
            precompute_reference=False,
        ),
        pairs(pairs_per_step=5, micro_batch_pairs=2, eval_batch_pairs=3, seed=1),
    )


def main(folder: Path, cases: Iterable[Case]) -> None:
    """Every case, one after the other."""
    for case in cases:
        status = forked(case.ranks, lambda rank, case=case: fit(case, folder / case.name, rank))
        assert status == [0] * case.ranks, (case, status)


if __name__ == "__main__":
    main(Path(sys.argv[1]), CASES)
