"""The oracle world's rewards of texts are those of its tables."""

import numpy as np
import pytest

from data.oracle.world import oracle_world
from data.oracle.world.reward import OracleReward


def test_every_response_and_malformed_text_have_the_reward_of_the_table() -> None:
    world = oracle_world(prompts=5)
    texts = [*world.responses, "no words of this world"]
    for row, prompt in enumerate(world.prompts):
        found = OracleReward(prompts=5)([prompt] * len(texts), texts)
        assert np.array_equal(found.numpy(), world.reward_PK[row])


def test_a_prompt_of_another_world_and_a_missing_response_are_named() -> None:
    world = oracle_world(prompts=5)
    with pytest.raises(ValueError, match="not one of the 5 prompts of this oracle world"):
        OracleReward(prompts=5)(["Who are you?"], ["Nobody."])
    with pytest.raises(ValueError, match="1 prompts, 0 responses"):
        OracleReward(prompts=5)([world.prompts[0]], [])
