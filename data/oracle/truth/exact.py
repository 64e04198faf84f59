"""Exact figures of a policy: its enumerated probabilities, compared with the reference's and the optimum's.

Letters: P prompts, R well-formed responses, K = R + 1 cells (the last is malformed text), C cost constraints.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning import LightningModule
from scipy.special import log_softmax  # type: ignore[import-untyped]

from data.oracle.truth.enumeration import Which, enumerate_policy, world_ids
from data.oracle.truth.optimum import Floats, constrained, masked, measure, per_token, regret, tilt
from data.oracle.truth.population import minimise
from data.oracle.truth.reference_table import read_reference
from data.oracle.world import World
from lit_safe.precision import run_precision
from lit_safe.protocols.objective import is_reference_free

Optimum = Literal[
    "tilt", "tilt_at_multiplier", "tilt_at_limit", "rectified_at_limit", "masked", "population", "per_token", "none"
]
LIMITED: tuple[Optimum, ...] = ("tilt_at_limit", "rectified_at_limit")


class Exact:
    """The reference's probabilities, the optimum, and the figures of the current policy compared with both.

    Args:
        module: A LightningModule with ``pair``, and for ``population`` with ``objective``. Its current policy is
            measured; the trainer's precision is used if it has a trainer.
        data: The run's data module, set up.
        world: The world of the data.
        beta: Strength of the KL term.
        optimum: As in ``OracleMeasure``, like the next two.
        limit: [] or [C], needed by ``tilt_at_limit`` and ``rectified_at_limit``.
        flip: Probability with which the data reverse an order, for ``population``.
        batch_size: Number of sequences scored at once.
        reference: File of ``ReferenceTable`` with the reference to compare with; null enumerates the module's own.

    Attributes:
        tables: Log-probs of the reference [P, K], rewards [P, K] and costs [P, K, C].
        optimum_PK: Log-probs of the optimum.
        multiplier_C: Multipliers of the optimum, nats per cost unit.
        diverges: Whether the population loss has no finite minimiser. Figures then contain no regret.

        known: Whether there is an optimum. Otherwise figures contain no regret.

    Raises:
        ValueError: If the limit cannot be met, the data are of another world, or the data's flip differs.
        FileNotFoundError: If there is no file ``reference``.
    """

    def __init__(
        self,
        module: LightningModule,
        data: Any,
        world: World,
        beta: float,
        optimum: Optimum = "tilt",
        limit: float | list[float] | None = None,
        flip: float = 0.0,
        batch_size: int = 512,
        reference: str | None = None,
    ) -> None:
        self.world, self.beta = world, beta
        self._module, self._batch = module, batch_size
        self._pair: Any = module.pair
        self._ids = world_ids(world, data)
        self._seen: tuple[str, Floats] | None = None
        self._own_reference = reference is None
        self.reference_PK = self._enumerate("reference") if reference is None else _table(Path(reference), world)
        self.tables = (self.reference_PK, world.reward_PK, world.cost_PKC)
        self.multiplier_C: Floats = np.zeros(len(world.constraints))
        self.diverges = False
        self.optimum_PK = self.reference_PK
        if optimum in LIMITED:
            if limit is None:
                raise ValueError(f"optimum: {optimum} needs a limit")
            rectify = optimum == "rectified_at_limit"
            self.multiplier_C, self.optimum_PK = constrained(*self.tables, limit=limit, beta=beta, rectify=rectify)
        elif optimum == "population":
            self._minimise(data, flip)
        elif optimum == "masked":
            self.optimum_PK = self.masked_PK
        elif optimum == "per_token":
            free = is_reference_free(getattr(module, "objective"))  # noqa: B009  (no attribute of LightningModule)
            base_PK = np.where(np.isfinite(self.reference_PK), 0.0, -np.inf) if free else self.reference_PK
            self.optimum_PK = per_token(base_PK, world.reward_PK, [len(ids) for ids in self._ids[1]], beta)
        elif optimum == "tilt_at_multiplier":
            self.multiplier_C = np.broadcast_to(multiplier_of(module) or [0.0], self.multiplier_C.shape)
            self.optimum_PK = tilt(*self.tables, multiplier=self.multiplier_C, beta=beta)
        elif optimum == "tilt":
            self.optimum_PK = tilt(*self.tables, multiplier=self.multiplier_C, beta=beta)
        self.known = optimum != "none" and not self.diverges

    @property
    def masked_PK(self) -> Floats:
        """[P, K] log-probs of SafeDPO's optimum."""
        return masked(*self.tables, beta=self.beta)

    def _minimise(self, data: Any, flip: float) -> None:
        """Compute the minimiser of the objective's population loss."""
        rates = {source.flip for source in data.sources if hasattr(source, "flip")}
        if rates - {flip}:
            raise ValueError(f"flip is {flip} here and {', '.join(map(str, sorted(rates)))} in the data")
        multiplier = np.array(multiplier_of(self._module) or [0.0])
        objective: Any = self._module.objective
        found = minimise(objective, *self.tables, multiplier[0] if len(multiplier) == 1 else multiplier, flip)
        self.optimum_PK, self.diverges = found.logp_PK, found.diverges
        if not self.diverges:
            self.multiplier_C = np.broadcast_to(multiplier, self.multiplier_C.shape)

    def policy(self, untouched: bool = False) -> Floats:
        """[P, K] log-probabilities, the same on every rank. Unchanged weights are not enumerated again.

        If an ``untouched`` policy gives the first prompt's responses exactly the probabilities of its own reference,
        bit for bit, that reference's table is used for all prompts.
        """
        digest = hashlib.sha256()
        for parameter in self._pair.parameters():
            digest.update(parameter.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes())
        if self._seen is None or self._seen[0] != digest.hexdigest():
            same = (
                untouched
                and self._own_reference
                and np.array_equal(self._enumerate("policy", prompts=1), self._enumerate("reference", 1))
            )
            self._seen = digest.hexdigest(), self.reference_PK if same else self._enumerate("policy")
        return self._seen[1]

    def _enumerate(self, which: Which, prompts: int | None = None) -> Floats:
        prompt_ids, response_ids = self._ids
        with run_precision(self._module, self._module.device):
            return enumerate_policy(self._pair, prompt_ids[:prompts], response_ids, which=which, batch=self._batch)

    def values(self, policy_PK: Floats) -> dict[str, float]:
        """Every figure of a policy, by its logged name."""
        found = measure(policy_PK, *self.tables)
        lost = regret(policy_PK, self.optimum_PK, self.reference_PK, self.beta)
        policy_PR, optimum_PR, reference_PR = map(_given_wellformed, (policy_PK, self.optimum_PK, self.reference_PK))
        return {
            "reward": found.reward,
            **self._named("cost", found.cost),
            "unsafe": found.unsafe,
            "unsafe_worst": found.unsafe_worst,
            "malformed": found.malformed,
            "malformed_worst": found.malformed_worst,
            "kl": found.kl,
            "regret": lost.nats if self.known else math.nan,
            "regret_share": lost.share if self.known else math.nan,
            "leak": lost.leak,
            "wellformed/reward": found.reward_wellformed,
            **self._named("wellformed/cost", found.cost_wellformed),
            "wellformed/unsafe": found.unsafe_wellformed,
            "wellformed/kl": found.kl_wellformed,
            "wellformed/regret_share": (
                regret(policy_PR, optimum_PR, reference_PR, self.beta).share if self.known else math.nan
            ),
        }

    def _named(self, name: str, cost_C: Floats) -> dict[str, float]:
        if len(cost_C) == 1:
            return {name: float(cost_C[0])}
        return {f"{name}_{c}": float(cost) for c, cost in zip(self.world.constraints, cost_C, strict=True)}


def multiplier_of(module: LightningModule) -> list[float] | None:
    """The module's multiplier(s), nats per cost unit; None if it has none."""
    multiplier = getattr(module, "multiplier", None)
    return None if multiplier is None else multiplier.reshape(-1).tolist()


def _table(path: Path, world: World) -> Floats:
    """[P, K] of the file ``path``."""
    found_PK = read_reference(path)
    if found_PK.shape != world.reward_PK.shape:
        raise ValueError(f"{path} has a table of {found_PK.shape}, and this world's is {world.reward_PK.shape}")
    return found_PK


def _given_wellformed(logp_PK: Floats) -> Floats:
    return np.asarray(log_softmax(logp_PK[:, :-1], -1))
