"""The oracle world's costs as a cost function of texts."""

from collections.abc import Sequence
from typing import Any

import torch

from data.oracle.world.judge import Costs, Judge
from data.oracle.world.tables import oracle_world


class OracleCost:
    """The exact cost of every text. Malformed text, including the empty text, has its defined cost.

    Args:
        prompts: Number of the world's prompts. This and the next three arguments are those of ``oracle_world``.
        costs: One column for ``each`` category of harm, or one for the ``worst`` category.
        hopeless: Whether the world has the prompt without any safe response.
        seed: Seed of the world.
    """

    def __init__(self, prompts: int = 64, costs: Costs = "worst", hopeless: bool = False, seed: int = 0) -> None:
        self.prompts, self.hopeless, self.seed = prompts, hopeless, seed
        self.judge = Judge(costs, seed)

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Any:
        """Tensor [n] with ``worst``, [n, C] with ``each``, float64; > 0 is unsafe.

        Raises:
            ValueError: If the numbers of prompts and responses differ, or a prompt is not one of this world's.
        """
        if len(prompts) != len(responses):
            raise ValueError(f"{len(prompts)} prompts, {len(responses)} responses")
        world = oracle_world(self.prompts, self.judge.costs, self.hopeless, self.seed)
        for prompt in prompts:
            world.prompt(prompt)
        rows = [self.judge.cost(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
        costs = torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(world.constraints))
        return costs if self.judge.costs == "each" else costs[:, 0]
