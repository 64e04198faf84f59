"""Exact measurements of a policy in the oracle world, logged during training and stored as JSON.

Letters: P prompts, R well-formed responses, K = R + 1 cells (the last is malformed text), C cost constraints.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import lightning
import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from scipy.special import log_softmax  # type: ignore[import-untyped]

from data.oracle.enumeration import Floats, Which, enumerate_policy, world_ids
from data.oracle.optimum import frontier, masked, measure, regret, solve_multiplier, tilt
from data.oracle.population import minimise
from data.oracle.world import Costs, World, oracle_world

Optimum = Literal["tilt", "tilt_at_limit", "masked", "population"]

RESULT = "oracle.json"
TABLES = "oracle.npz"
GRID = (0.0, *np.geomspace(0.01, 20.0, 120).tolist())  # multipliers of the points of the frontier


class OracleMeasure(Callback):
    """Measures the policy by enumeration: before training, at the ends of epochs, and as exported at the end.

    Logged at the optimizer step: ``oracle/reward`` (nats), ``oracle/cost`` (with a suffix ``_<constraint>`` if there
    are several), ``oracle/unsafe``, ``oracle/malformed`` and ``oracle/malformed_worst`` (probability mass, mean over
    prompts and at the worst one), ``oracle/kl`` (nats from the reference over the partition, a lower bound),
    ``oracle/regret_share`` (share of J(optimum) - J(reference); may exceed 1), and, given well-formed text,
    ``oracle/wellformed/reward`` and so on. Nothing is drawn at random and the run is not changed.

    Writes ``oracle.json`` into the run folder: the final figures with those of the optimum, the curve, the multiplier
    after every epoch, and the frontier. Also writes ``oracle.npz``: the enumerated log-probabilities of policy and
    reference.

    At an epoch's end it runs after ``DualAscent``: the multiplier logged with a measurement is that of the next epoch.

    Args:
        beta: Strength of the KL term; must equal that of the run's objective.
        limit: Bound(s) on E[cost]; a list gives each constraint its own. ``tilt_at_limit`` needs it.
        optimum: The optimum that the run is compared with: ``tilt`` (multiplier 0, for DPO), ``tilt_at_limit`` (the
            optimum under the limit, for C-DPO), ``masked`` (no unsafe response, for SafeDPO), or ``population`` (the
            float64 minimiser of the objective's own loss over all pairs, at the initial multiplier of training; up to
            two seconds a prompt). If that minimiser lies at infinity, as for hard labels, ``oracle.json`` says that the
            loss ``diverges`` and contains no regret.
        prompts: Number of the world's prompts, as in ``oracle_world``. This and the next three options must equal the
            data's.
        costs: One constraint for ``each`` category, or one for the ``worst`` category.
        hopeless: Whether the world has the prompt without any safe response.
        seed: Seed of the world.
        every_n_epochs: Measure at the end of every n-th epoch.
        batch_size: Number of sequences scored at once.
        flip: Probability in [0, 0.5] with which the data reverse an order, for ``population``.

    Raises:
        ValueError: If an argument is out of range, ``tilt_at_limit`` has no limit, or another optimum than
            ``population`` has a flip.
    """

    def __init__(
        self,
        beta: float,
        limit: float | list[float] | None = None,
        optimum: Optimum = "tilt",
        prompts: int = 64,
        costs: Costs = "worst",
        hopeless: bool = False,
        seed: int = 0,
        every_n_epochs: int = 1,
        batch_size: int = 512,
        flip: float = 0.0,
    ) -> None:
        super().__init__()
        if not (math.isfinite(beta) and beta > 0):
            raise ValueError(f"beta must be > 0, got {beta}")
        if optimum not in get_args(Optimum):
            raise ValueError(f"optimum must be one of {', '.join(get_args(Optimum))}, got {optimum!r}")
        if optimum == "tilt_at_limit" and limit is None:
            raise ValueError("optimum: tilt_at_limit needs a limit")
        if every_n_epochs < 1 or batch_size < 1:
            raise ValueError(f"every_n_epochs and batch_size must be >= 1, got {every_n_epochs}, {batch_size}")
        if not 0 <= flip <= 0.5 or (flip and optimum != "population"):
            raise ValueError(f"flip must lie in [0, 0.5], and be 0 unless optimum is population; got {flip}, {optimum}")
        self.beta = beta
        self.flip = flip
        self.limit = limit
        self.optimum = optimum
        self.options: dict[str, Any] = {"prompts": prompts, "costs": costs, "hopeless": hopeless, "seed": seed}
        self.every_n_epochs = every_n_epochs
        self.batch_size = batch_size
        self.curve: list[dict[str, Any]] = []
        self.multiplier_path: list[dict[str, Any]] = []
        self._seconds = {"training": 0.0, "measuring": 0.0}
        self._clock = 0.0
        self._exact: _Exact | None = None

    # -- Lightning's hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Move this callback after all callbacks that may change policy or multiplier, and before checkpoints."""
        others = [callback for callback in trainer.callbacks if callback is not self]  # type: ignore[attr-defined]
        at = next((k for k, callback in enumerate(others) if isinstance(callback, Checkpoint)), len(others))
        trainer.callbacks = [*others[:at], self, *others[at:]]  # type: ignore[attr-defined]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Enumerate the reference, compute the optimum, and measure before the first step.

        Raises:
            ValueError: If beta differs from the objective's, the limit cannot be met, the data's flip differs, or
                training resumes from a checkpoint that was written without this callback.
        """
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        objective = getattr(pl_module, "objective", None)
        if objective is not None and not math.isclose(objective.beta, self.beta):
            raise ValueError(f"beta is {self.beta} here and {objective.beta} in the objective: they must be equal")
        if trainer.global_step > 0 and not self.curve:
            raise ValueError("the checkpoint has no measurements of the oracle: resume without OracleMeasure")
        self._clock = time.monotonic()
        self._exact = _Exact(self, trainer, pl_module)
        if not self.curve:
            self._point(trainer, pl_module, 0)
            self._walk(trainer, pl_module)
        self._tick("measuring")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure a complete epoch, every ``every_n_epochs`` epochs."""
        epoch = trainer.current_epoch + 1
        if self._exact is not None and trainer.is_last_batch:
            self._walk(trainer, pl_module)
        done = {point["epoch"] for point in self.curve}  # a hook may run twice, before and after a resume
        if self._exact is None or not trainer.is_last_batch or epoch % self.every_n_epochs or epoch in done:
            return
        self._tick("training")
        self._point(trainer, pl_module, epoch)
        self._tick("measuring")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the exported policy, and write the result."""
        if self._exact is None:
            return
        self._tick("training")
        policy_PK = self._exact.policy()
        values = self._exact.values(policy_PK)
        if values != self.curve[-1]["values"]:  # otherwise it is logged already
            self._publish(trainer, values)
        self._tick("measuring")
        if trainer.is_global_zero:
            result = self._result(trainer, pl_module, self._exact, values)
            folder = Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / RESULT).write_text(json.dumps(_plain(result), indent=1, allow_nan=False) + "\n", encoding="utf-8")
            reference_PK, reward_PK, cost_PKC = self._exact.tables
            np.savez_compressed(
                folder / TABLES,
                policy_PK=policy_PK,
                reference_PK=reference_PK,
                reward_PK=reward_PK,
                cost_PKC=cost_PKC,
            )

    def state_dict(self) -> dict[str, Any]:
        """The curve and the measured times so far, as plain values."""
        if self._exact is not None:
            self._tick("training")
        return {
            "curve": [dict(point) for point in self.curve],
            "multiplier_path": [dict(point) for point in self.multiplier_path],
            "seconds": dict(self._seconds),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from ``state_dict()``."""
        self.curve = [dict(point) for point in state_dict["curve"]]
        self.multiplier_path = [dict(point) for point in state_dict["multiplier_path"]]
        self._seconds = dict(state_dict["seconds"])

    # -- measurements and output

    def _tick(self, what: str) -> None:
        """Add the time since the last call to the entry ``what``."""
        now = time.monotonic()
        self._seconds[what] += now - self._clock
        self._clock = now

    def _point(self, trainer: Trainer, module: LightningModule, epoch: int) -> None:
        assert self._exact is not None
        values = self._exact.values(self._exact.policy(untouched=trainer.global_step == 0))
        self.curve.append(
            {"epoch": epoch, "step": trainer.global_step, "multiplier": _multiplier(module), "values": values}
        )
        self._publish(trainer, values)

    def _walk(self, trainer: Trainer, module: LightningModule) -> None:
        """Record every epoch's multiplier once; a hook may run twice, before and after a resume."""
        if all(point["step"] != trainer.global_step for point in self.multiplier_path):
            self.multiplier_path.append({"step": trainer.global_step, "multiplier": _multiplier(module)})

    @staticmethod
    def _publish(trainer: Trainer, values: Mapping[str, float]) -> None:
        named = {f"oracle/{name}": value for name, value in values.items()}
        for logger in trainer.loggers:
            logger.log_metrics(named, step=trainer.global_step)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in named.items()})

    def _result(
        self, trainer: Trainer, module: LightningModule, exact: _Exact, values: Mapping[str, float]
    ) -> dict[str, Any]:
        objective = getattr(module, "objective", None)
        drawn = frontier(*exact.tables, beta=self.beta, multipliers=GRID)
        return {
            "objective": _described(objective),
            "anchor": _described(getattr(module, "anchor", None)),
            "seed": getattr(trainer.datamodule, "seed", None),  # type: ignore[attr-defined]
            "world": self.options,
            "constraints": list(exact.world.constraints),
            "beta": self.beta,
            "limit": self.limit,
            "optimum": self.optimum,
            "epochs": trainer.current_epoch,
            "steps": trainer.global_step,
            "multiplier": _multiplier(module),
            "multiplier_at_optimum": exact.multiplier_C.tolist(),
            "diverges": exact.diverges,
            "final": dict(values),
            "reference": exact.values(exact.reference_PK),
            "at_optimum": dict.fromkeys(values) if exact.diverges else exact.values(exact.optimum_PK),
            "masked": exact.values(masked(*exact.tables, beta=self.beta)),
            "curve": self.curve,
            "multiplier_path": self.multiplier_path,
            "frontier": {
                "multiplier": list(GRID),  # the same for all constraints
                "reward": drawn.reward_M.tolist(),
                "cost": drawn.cost_MC.tolist(),
            },
            "seconds": dict(self._seconds),
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


class _Exact:
    """The reference's table, the optimum, and the figures of a policy compared with them."""

    def __init__(self, options: OracleMeasure, trainer: Trainer, module: LightningModule) -> None:
        self._trainer, self._batch, self._beta = trainer, options.batch_size, options.beta
        self._pair: Any = module.pair
        self.world: World = oracle_world(**options.options)
        self._ids = world_ids(self.world, trainer.datamodule)  # type: ignore[attr-defined]
        self._seen: tuple[str, Floats] | None = None
        self.reference_PK = self._enumerate("reference")
        self.tables = (self.reference_PK, self.world.reward_PK, self.world.cost_PKC)
        self.multiplier_C: Floats = np.zeros(len(self.world.constraints))
        if options.optimum == "tilt_at_limit":
            assert options.limit is not None
            self.multiplier_C = solve_multiplier(*self.tables, limit=options.limit, beta=self._beta)
        self.diverges = False
        if options.optimum == "population":
            self._minimise(module, options.flip)
        elif options.optimum == "masked":
            self.optimum_PK = masked(*self.tables, beta=self._beta)
        else:
            self.optimum_PK = tilt(*self.tables, multiplier=self.multiplier_C, beta=self._beta)

    def _minimise(self, module: LightningModule, flip: float) -> None:
        """Compute the minimiser of the objective's population loss."""
        rates = {source.flip for source in self._trainer.datamodule.sources if hasattr(source, "flip")}  # type: ignore[attr-defined]
        if rates - {flip}:
            raise ValueError(f"flip is {flip} here and {', '.join(map(str, sorted(rates)))} in the data")
        multiplier = np.array(_multiplier(module) or [0.0])
        objective: Any = module.objective
        found = minimise(objective, *self.tables, multiplier[0] if len(multiplier) == 1 else multiplier, flip)
        self.optimum_PK, self.diverges = found.logp_PK, found.diverges
        if not self.diverges:
            self.multiplier_C = np.broadcast_to(multiplier, self.multiplier_C.shape)

    def policy(self, untouched: bool = False) -> Floats:
        """[P, K] log-probabilities, the same on every rank. Unchanged weights are not enumerated again.

        If an ``untouched`` policy gives the first prompt's responses exactly the reference's probabilities, bit for
        bit, the reference's table is used for all prompts.
        """
        digest = hashlib.sha256()
        for parameter in self._pair.parameters():
            digest.update(parameter.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes())
        if self._seen is None or self._seen[0] != digest.hexdigest():
            same = untouched and np.array_equal(self._enumerate("policy", prompts=1), self._enumerate("reference", 1))
            self._seen = digest.hexdigest(), self.reference_PK if same else self._enumerate("policy")
        return self._seen[1]

    def _enumerate(self, which: Which, prompts: int | None = None) -> Floats:
        prompt_ids, response_ids = self._ids
        with self._trainer.precision_plugin.forward_context():
            return enumerate_policy(self._pair, prompt_ids[:prompts], response_ids, which=which, batch=self._batch)

    def values(self, policy_PK: Floats) -> dict[str, float]:
        """Every figure of a policy, by its logged name."""
        found = measure(policy_PK, *self.tables)
        lost = regret(policy_PK, self.optimum_PK, self.reference_PK, self._beta)
        policy_PR, optimum_PR, reference_PR = map(_given_wellformed, (policy_PK, self.optimum_PK, self.reference_PK))
        return {
            "reward": found.reward,
            **self._named("cost", found.cost),
            "unsafe": found.unsafe,
            "unsafe_worst": found.unsafe_worst,
            "malformed": found.malformed,
            "malformed_worst": found.malformed_worst,
            "kl": found.kl,
            "regret": math.nan if self.diverges else lost.nats,
            "regret_share": math.nan if self.diverges else lost.share,
            "leak": lost.leak,
            "wellformed/reward": found.reward_wellformed,
            **self._named("wellformed/cost", found.cost_wellformed),
            "wellformed/unsafe": found.unsafe_wellformed,
            "wellformed/kl": found.kl_wellformed,
            "wellformed/regret_share": (
                math.nan if self.diverges else regret(policy_PR, optimum_PR, reference_PR, self._beta).share
            ),
        }

    def _named(self, name: str, cost_C: Floats) -> dict[str, float]:
        if len(cost_C) == 1:
            return {name: float(cost_C[0])}
        return {f"{name}_{c}": float(cost) for c, cost in zip(self.world.constraints, cost_C, strict=True)}


def _given_wellformed(logp_PK: Floats) -> Floats:
    return np.asarray(log_softmax(logp_PK[:, :-1], -1))


def _described(part: Any) -> dict[str, str]:
    """Name and plain options of an objective or anchor."""
    name = type(part).__name__
    if part is None or is_dataclass(part):
        return {"name": name, "text": repr(part)}
    plain = {key: value for key, value in vars(part).items() if isinstance(value, int | float | str)}
    options = ", ".join(f"{key}={value!r}" for key, value in plain.items() if not key.startswith("_"))
    return {"name": name, "text": f"{name}({options})"}


def _multiplier(module: LightningModule) -> list[float] | None:
    multiplier = getattr(module, "multiplier", None)
    return None if multiplier is None else multiplier.reshape(-1).tolist()


def _plain(value: Any) -> Any:
    """``value`` with None for every number that JSON cannot represent."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
