"""The oracle world's rewards as a function of texts, for estimates that need a reward of sampled responses."""

from collections.abc import Sequence
from typing import Any

import torch

from data.oracle.world.judge import Judge
from data.oracle.world.tables import oracle_world


class OracleReward:
    """The exact reward of every text in nats of Bradley-Terry, malformed text included.

    Args:
        prompts: Number of the world's prompts. All arguments are those of ``oracle_world``.
        hopeless: Whether the world has the prompt without any safe response.
        seed: Seed of the world.
    """

    def __init__(self, prompts: int = 64, hopeless: bool = False, seed: int = 0) -> None:
        self.prompts, self.hopeless, self.seed = prompts, hopeless, seed
        self.judge = Judge(seed=seed)

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Any:
        """Tensor [n], float64.

        Raises:
            ValueError: If the numbers of prompts and responses differ, or a prompt is not one of this world's.
        """
        if len(prompts) != len(responses):
            raise ValueError(f"{len(prompts)} prompts, {len(responses)} responses")
        world = oracle_world(self.prompts, hopeless=self.hopeless, seed=self.seed)
        for prompt in prompts:
            world.prompt(prompt)
        rows = [self.judge.reward(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
        return torch.tensor(rows, dtype=torch.float64)
