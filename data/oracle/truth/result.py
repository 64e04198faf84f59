"""The files that ``OracleMeasure`` writes into a run folder."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning import LightningModule, Trainer

from data.oracle.truth.exact import Exact, multiplier_of
from data.oracle.truth.optimum import Floats, frontier
from lit_safe.protocols.trainer import connected

RESULT = "oracle.json"
TABLES = "oracle.npz"
GRID = (0.0, *np.geomspace(0.01, 20.0, 120).tolist())  # multipliers of the points of the frontier


def write_result(folder: Path, result: Mapping[str, Any], exact: Exact, policy_PK: Floats) -> None:
    """Write ``oracle.json``, and ``oracle.npz`` with the tables of the reference and the log-probs of the policy.

    Args:
        folder: Created if it does not exist.
        result: Content of ``oracle.json``. Numbers that JSON cannot represent become null.
        exact: Has the tables.
        policy_PK: Log-probs of the exported policy.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULT).write_text(json.dumps(_plain(result), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    reference_PK, reward_PK, cost_PKC = exact.tables
    np.savez_compressed(
        folder / TABLES,
        policy_PK=policy_PK,
        reference_PK=reference_PK,
        reward_PK=reward_PK,
        cost_PKC=cost_PKC,
    )


def compared(exact: Exact, final: Mapping[str, float]) -> dict[str, Any]:
    """The ``final`` figures beside those of the reference, the optimum and SafeDPO's optimum, and the frontier."""
    drawn = frontier(*exact.tables, beta=exact.beta, multipliers=GRID)
    return {
        "constraints": list(exact.world.constraints),
        "multiplier_at_optimum": exact.multiplier_C.tolist(),
        "diverges": exact.diverges,
        "final": dict(final),
        "reference": exact.values(exact.reference_PK),
        "at_optimum": exact.values(exact.optimum_PK) if exact.known else dict.fromkeys(final),
        "masked": exact.values(exact.masked_PK),
        "frontier": {
            "multiplier": list(GRID),  # the same for all constraints
            "reward": drawn.reward_M.tolist(),
            "cost": drawn.cost_MC.tolist(),
        },
    }


def run_facts(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """What was trained, for how long, by which command and on which machine."""
    return {
        "objective": _described(getattr(module, "objective", None)),
        "anchor": _described(getattr(module, "anchor", None)),
        "seed": getattr(connected(trainer).datamodule, "seed", None),
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "multiplier": multiplier_of(module),
        "command": shlex.join(["lit-safe", *sys.argv[1:]]),
        "machine": {
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": str(module.device),
            "ranks": trainer.world_size,
            "torch": str(torch.__version__),
            "lightning": str(lightning.__version__),
        },
    }


def _described(part: Any) -> dict[str, str]:
    """Name and plain options of an objective or anchor."""
    name = type(part).__name__
    if part is None or is_dataclass(part):
        return {"name": name, "text": repr(part)}
    plain = {key: value for key, value in vars(part).items() if isinstance(value, int | float | str)}
    options = ", ".join(f"{key}={value!r}" for key, value in plain.items() if not key.startswith("_"))
    return {"name": name, "text": f"{name}({options})"}


def _plain(value: Any) -> Any:
    """``value`` with None for every number that JSON cannot represent."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
