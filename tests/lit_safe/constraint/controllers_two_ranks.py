"""One rank of two that train under every controller, and train again from a checkpoint of the first run."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lit_safe.constraint.controllers import Controller
from lit_safe.constraint.controllers.fixed import Fixed
from lit_safe.constraint.controllers.log_barrier import LogBarrier
from lit_safe.constraint.controllers.log_space import LogSpace
from lit_safe.constraint.controllers.newton import DiagonalNewton
from lit_safe.constraint.controllers.pid import PIDLagrangian
from lit_safe.constraint.controllers.scheduled import Scheduled
from lit_safe.constraint.controllers.subgradient import ProjectedSubgradient
from lit_safe.constraint.costs.rollout import RolloutCost
from lit_safe.constraint.dual_ascent import DualAscent
from tests.lit_safe.constraint.test_dual import Save, module, trainer
from tests.lit_safe.dual_world import TableCost, Toy

CONTROLLERS: dict[str, Callable[[], Controller]] = {
    "fixed": lambda: Fixed(0.5),
    "scheduled": lambda: Scheduled(0.2, 1.0),
    "subgradient": lambda: ProjectedSubgradient(0.5),
    "log space": lambda: LogSpace(init=0.5, lr=0.4, window=2),
    "pid": lambda: PIDLagrangian(0.3, 0.4, 0.2, 2, 0.5, 0.5),
    "log barrier": lambda: LogBarrier(0.2),
    "newton": lambda: DiagonalNewton(0.6),
}
EPOCHS, STEPS = 3, 2


def train_as_rank(folder: Path, rank: int) -> None:
    """Write ``<rank>.pt``: of each controller, what the whole and the resumed run end with."""
    os.environ["LOCAL_RANK"] = str(rank)  # Lightning then takes the group that has met already
    found = {}
    for name, make in CONTROLLERS.items():
        place = folder / name
        whole = _ended(place, make(), Save(place, "on_train_epoch_end"))
        resumed = _ended(place / "again", make(), ckpt_path=place / f"{STEPS}.ckpt", weights_only=True)
        found[name] = (whole, resumed)
    torch.save(found, folder / f"{rank}.pt")


def _ended(folder: Path, controller: Controller, *callbacks: Any, **options: Any) -> dict[str, Any]:
    dual = DualAscent(-1.0, controller=controller, estimator=RolloutCost(TableCost(), samples_per_prompt=3))
    model = module()
    run = trainer(
        folder, dual, *callbacks, devices=2, strategy="ddp", max_epochs=EPOCHS, logger=False, limit_val_batches=0,
        use_distributed_sampler=False,
    )  # fmt: skip
    run.fit(model, datamodule=Toy(STEPS), **options)
    assert run.world_size == 2
    state = dual.state_dict()
    known = {name: state.get(name) for name in ("controller", "controller_state", "standing")}
    return _plain({**known, "multiplier": model.multiplier, "epoch": int(model.dual_epoch)})


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
