"""Run by ``test_costs.py``: estimates and trains on as many gloo ranks as it is told, and writes what each rank got."""

import json
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lightning import Callback, Trainer

from lit_safe.constraint.costs.importance import ImportanceCost
from lit_safe.constraint.costs.labels import LabelledUnsafe
from lit_safe.constraint.costs.rollout import RolloutCost
from lit_safe.constraint.dual_ascent import DualAscent
from lit_safe.constraint.reachability.draw import draw_samples
from lit_safe.objectives import ConstrainedDPO
from lit_safe.training.module import PreferenceAlignment
from lit_safe.types import PackedBatch
from tests.lit_safe.dual_world import BETA, COST, ExactCost, Table, TableCost, Toy, all_pairs


class Shared(Toy):
    def dual_pairs(self) -> list[PackedBatch]:
        return [all_pairs(COST, self.trainer.global_rank, self.trainer.world_size)]


class Partial(ExactCost):
    """What a rank would say that forgot to ask the others."""

    def __call__(self, module: Any, data: Any, *, seed: int, epoch: int) -> Any:
        estimate = super().__call__(module, data, seed=seed, epoch=epoch)
        return estimate._replace(mean=estimate.mean + module.global_rank)


class Report(Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        same = SimpleNamespace(pair=Table())
        estimates = {
            "rollout": RolloutCost(TableCost(), samples_per_prompt=3, batch_size=4),
            "in_two_parts": RolloutCost(TableCost(), 2, 3, batch_size=4, stderr=1e-3),
            "importance": ImportanceCost(minimum_effective=20),
            "labels": LabelledUnsafe(),
        }
        report: dict[str, Any] = {"multiplier": float(pl_module.multiplier)}
        for name, estimator in estimates.items():
            estimate = estimator(same, trainer.datamodule, seed=1, epoch=2)
            report[name] = [float(x) for x in (*estimate[:5], *estimate.also.values())]
        sizes = {"prompts": None, "samples_per_prompt": 5, "max_new_tokens": 1, "batch_size": 3}
        drawn = draw_samples(same, trainer.datamodule, TableCost(), TableCost(), seed=1, **sizes)
        report["reachability"] = [*drawn.samples.cost_PKC.ravel().tolist(), *drawn.samples.reward_PK.ravel().tolist()]
        disagreeing = DualAscent(lr=1.0, estimator=Partial())
        try:
            disagreeing._end_of_epoch(trainer, pl_module, epoch=99)
        except RuntimeError as error:
            report["refusal"] = str(error)
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    devices, folder = int(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True)
    torch.set_num_threads(1)
    Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp_spawn" if devices > 1 else "auto",
        max_epochs=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        use_distributed_sampler=False,
        callbacks=[
            DualAscent(limit=-1.0, lr=0.5, estimator=RolloutCost(TableCost(), samples_per_prompt=4)),
            Report(folder),
        ],
    ).fit(
        PreferenceAlignment(
            Table(), ConstrainedDPO(beta=BETA), partial(torch.optim.SGD, lr=0.5), precompute_reference=False
        ),
        datamodule=Shared(5),
    )
