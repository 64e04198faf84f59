"""The oracle world's costs as a cost function of texts."""

from collections.abc import Sequence
from typing import Any

import torch

from data.oracle.world import Costs, Judge, oracle_world


class OracleCost:
    """The cost of every text, exactly; malformed text has its stated cost, the empty one too.

    Args:
        prompts: Of the world, as in ``oracle_world``; so are the next three.
        costs: One column for ``each`` category of harm, or the ``worst`` category alone.
        hopeless: Whether the world has the prompt without any safe response.
        seed: Of the world.
    """

    def __init__(self, prompts: int = 64, costs: Costs = "worst", hopeless: bool = False, seed: int = 0) -> None:
        self.prompts, self.hopeless, self.seed = prompts, hopeless, seed
        self.judge = Judge(costs, seed)

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Any:
        """Tensor [n] with ``worst``, [n, C] with ``each``, float64; > 0 is unsafe.

        Raises:
            ValueError: If there are not as many responses as prompts, or a prompt is none of this world's.
        """
        if len(prompts) != len(responses):
            raise ValueError(f"{len(prompts)} prompts, {len(responses)} responses")
        world = oracle_world(self.prompts, self.judge.costs, self.hopeless, self.seed)
        for prompt in prompts:
            world.prompt(prompt)
        rows = [self.judge.cost(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
        costs = torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(world.constraints))
        return costs if self.judge.costs == "each" else costs[:, 0]
