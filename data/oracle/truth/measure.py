"""Exact measurements of a policy in the oracle world, logged during training and stored as JSON.

Letters: P prompts, K cells of the response partition.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from data.oracle.truth.exact import LIMITED, Exact, Optimum, multiplier_of
from data.oracle.truth.result import compared, run_facts, write_result
from data.oracle.world import Costs, oracle_world
from lit_safe.protocols.trainer import connected


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
        limit: Bound(s) on E[cost]; a list gives each constraint its own. ``tilt_at_limit`` needs it, and
            ``rectified_at_limit``, where it bounds E[max(cost, 0)].
        optimum: The optimum that the run is compared with: ``tilt`` (multiplier 0, for DPO), ``tilt_at_multiplier``
            (the multiplier with which training starts, for C-DPO at a fixed one), ``tilt_at_limit`` (the optimum under
            the limit, for C-DPO), ``rectified_at_limit`` (the same for C-DPO with ``rectify``),
            ``masked`` (no unsafe response, for SafeDPO), or ``population`` (the float64 minimiser of the objective's
            own loss over all pairs, at the initial multiplier of training; up to two seconds a prompt),
            ``per_token`` (of length-normalised DPO and of SimPO without a target margin), or ``none`` (not known:
            ``oracle.json`` then contains no regret). If a population minimiser lies at infinity, as for hard labels,
            ``oracle.json`` says that the loss ``diverges`` and contains no regret either.
        prompts: Number of the world's prompts, as in ``oracle_world``. This and the next three options must equal the
            data's.
        costs: One constraint for ``each`` category, or one for the ``worst`` category.
        hopeless: Whether the world has the prompt without any safe response.
        seed: Seed of the world.
        every_n_epochs: Measure at the end of every n-th epoch.
        batch_size: Number of sequences scored at once.
        flip: Probability in [0, 0.5] with which the data reverse an order, for ``population``.
        reference: A file that ``ReferenceTable`` wrote. KL, regret and optimum are then those of this reference. For
            an objective without a reference, and for a second stage, whose own reference is the first stage. Null
            takes the run's.

    Raises:
        ValueError: If an argument is out of range, an optimum at a limit has none, or another optimum than
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
        reference: str | None = None,
    ) -> None:
        super().__init__()
        if not (math.isfinite(beta) and beta > 0):
            raise ValueError(f"beta must be > 0, got {beta}")
        if optimum not in get_args(Optimum):
            raise ValueError(f"optimum must be one of {', '.join(get_args(Optimum))}, got {optimum!r}")
        if optimum in LIMITED and limit is None:
            raise ValueError(f"optimum: {optimum} needs a limit")
        if every_n_epochs < 1 or batch_size < 1:
            raise ValueError(f"every_n_epochs and batch_size must be >= 1, got {every_n_epochs}, {batch_size}")
        if not 0 <= flip <= 0.5 or (flip and optimum != "population"):
            raise ValueError(f"flip must lie in [0, 0.5], and be 0 unless optimum is population; got {flip}, {optimum}")
        self.beta = beta
        self.flip = flip
        self.reference = reference
        self.limit = limit
        self.optimum = optimum
        self.options: dict[str, Any] = {"prompts": prompts, "costs": costs, "hopeless": hopeless, "seed": seed}
        self.every_n_epochs = every_n_epochs
        self.batch_size = batch_size
        self.curve: list[dict[str, Any]] = []
        self.multiplier_path: list[dict[str, Any]] = []
        self._seconds = {"training": 0.0, "measuring": 0.0}
        self._clock = 0.0
        self._exact: Exact | None = None

    # -- Lightning's hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Move this callback after all callbacks that may change policy or multiplier, and before checkpoints."""
        others = [callback for callback in connected(trainer).callbacks if callback is not self]
        at = next((k for k, callback in enumerate(others) if isinstance(callback, Checkpoint)), len(others))
        connected(trainer).callbacks = [*others[:at], self, *others[at:]]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Enumerate the reference, compute the optimum, and measure before the first step.

        Raises:
            ValueError: If beta differs from the objective's, the limit cannot be met, the data's flip differs, or
                training resumes from a checkpoint that was written without this callback.
        """
        if connected(trainer).fast_dev_run:
            return
        objective = getattr(pl_module, "objective", None)
        if objective is not None and not math.isclose(objective.beta, self.beta):
            raise ValueError(f"beta is {self.beta} here and {objective.beta} in the objective: they must be equal")
        if trainer.global_step > 0 and not self.curve:
            raise ValueError("the checkpoint has no measurements of the oracle: resume without OracleMeasure")
        self._clock = time.monotonic()
        self._exact = Exact(
            pl_module,
            connected(trainer).datamodule,
            oracle_world(**self.options),
            self.beta,
            self.optimum,
            self.limit,
            self.flip,
            self.batch_size,
            self.reference,
        )
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
            result = {
                **run_facts(trainer, pl_module),
                "world": self.options,
                "beta": self.beta,
                "limit": self.limit,
                "optimum": self.optimum,
                **compared(self._exact, values),
                "curve": self.curve,
                "multiplier_path": self.multiplier_path,
                "seconds": dict(self._seconds),
            }
            write_result(Path(trainer.default_root_dir), result, self._exact, policy_PK)

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
            {"epoch": epoch, "step": trainer.global_step, "multiplier": multiplier_of(module), "values": values}
        )
        self._publish(trainer, values)

    def _walk(self, trainer: Trainer, module: LightningModule) -> None:
        """Record every epoch's multiplier once; a hook may run twice, before and after a resume."""
        if all(point["step"] != trainer.global_step for point in self.multiplier_path):
            self.multiplier_path.append({"step": trainer.global_step, "multiplier": multiplier_of(module)})

    @staticmethod
    def _publish(trainer: Trainer, values: Mapping[str, float]) -> None:
        named = {f"oracle/{name}": value for name, value in values.items()}
        for logger in trainer.loggers:
            logger.log_metrics(named, step=trainer.global_step)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in named.items()})
