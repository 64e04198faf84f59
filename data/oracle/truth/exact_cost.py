"""E[cost] without sampling, for the dual step if every response can be listed.

Letters: P prompts, K cells, C cost constraints.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from data.oracle.truth.enumeration import enumerate_policy, world_ids
from data.oracle.truth.optimum import measure
from data.oracle.world import Costs, oracle_world
from data.split import Split
from lit_safe.types import CostEstimate


class ExactCost:
    """A cost estimator of the oracle world that enumerates the policy. Its standard error is 0.

    All probability mass counts; malformed text has its defined cost.

    Args:
        prompts: Number of the world's prompts, as in ``oracle_world``. The first four options must equal the data's.
        costs: One constraint for ``each`` category, or one for the ``worst`` category.
        hopeless: Whether the world has the prompt without any safe response.
        seed: Seed of the world.
        split: Use only the prompts of this split; null takes all prompts of the world.
        batch_size: Number of sequences scored at once.
    """

    def __init__(
        self,
        prompts: int = 64,
        costs: Costs = "worst",
        hopeless: bool = False,
        seed: int = 0,
        split: Split | None = None,
        batch_size: int = 512,
    ) -> None:
        self.options: dict[str, Any] = {"prompts": prompts, "costs": costs, "hopeless": hopeless, "seed": seed}
        self.split = split
        self.batch_size = batch_size
        self._ids: tuple[list[list[int]], list[list[int]]] | None = None

    def __call__(self, module: Any, data: Any, *, seed: int, epoch: int) -> CostEstimate:
        """E[cost], [] or [C]. ``seed`` and ``epoch`` are unused, because nothing is drawn."""
        world = oracle_world(**self.options)
        if self._ids is None:
            self._ids = world_ids(world, data)
        rows = list(range(len(world.prompts)))
        if self.split is not None:
            rows = [world.prompt(prompt.text) for prompt in data.prompts(self.split)]
        prompt_ids, response_ids = self._ids
        asked = [prompt_ids[row] for row in rows]
        policy_PK = enumerate_policy(module.pair, asked, response_ids, batch=self.batch_size)
        found = measure(policy_PK, policy_PK, world.reward_PK[rows], world.cost_PKC[rows])
        mean = torch.from_numpy(np.asarray(found.cost))
        mean = mean[0] if len(mean) == 1 else mean
        unsafe = torch.tensor(found.unsafe, dtype=torch.float64)
        return CostEstimate(mean, torch.zeros_like(mean), len(rows), unsafe, float(len(rows)))
