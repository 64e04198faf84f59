"""Draws responses of the reference to the prompts of the dual split and scores their rewards and costs.

Letters: P prompts, K samples of each, C cost constraints.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_safe.constraint.reachability.tilt import Samples, scored_samples
from lit_safe.execution.quiet import quiet
from lit_safe.execution.ranks import rank_and_world
from lit_safe.hashing import hash64, uniforms
from lit_safe.protocols.pair import HasPair
from lit_safe.rollouts.answers import Rows, answers
from lit_safe.rollouts.scoring import check_scores, name_of, place, score
from lit_safe.types import CostFunction, Prompt


class Drawn(NamedTuple):
    """Scored samples, and the shares of responses without a stop token and without text, in [0, 1]."""

    samples: Samples
    truncated: float
    empty: float


def draw_samples(
    module: HasPair,
    data: Any,
    cost: CostFunction,
    reward: CostFunction | None,
    *,
    prompts: int | None,
    samples_per_prompt: int,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
) -> Drawn:
    """Sample the reference's responses to prompts of the dual split and score them. All ranks get the same result.

    A response depends only on the seed, its prompt, its number and the reference.

    Args:
        module: Its reference answers.
        data: Gives the prompts of the dual split.
        cost: Scores text; > 0 is unsafe.
        reward: Scores text; larger is better, in nats of Bradley-Terry. With None, every reward is 0.
        prompts: Number of prompts; None takes all.
        samples_per_prompt: K, at least 2.
        max_new_tokens: Maximum length of a response in tokens.
        batch_size: Number of responses generated at once.
        seed: Of the draws.

    Raises:
        ValueError: If there are fewer than two prompts, a score is not finite, or rewards are not one per response.
    """
    chosen: list[Prompt] = sorted(data.prompts("dual"), key=lambda p: hash64("reach-prompt", seed, p.prompt_id))
    chosen = chosen[:prompts]
    if len(chosen) < 2:
        raise ValueError(f"the dual split has {len(chosen)} prompts, and an estimate needs two: add data")
    jobs = [(prompt, number) for prompt in chosen for number in range(samples_per_prompt)]

    def numbers(prompt: Prompt, number: int) -> Tensor:
        return uniforms(max_new_tokens, "reach", seed, prompt.prompt_id, number)

    costs, others = Rows(len(jobs)), Rows(len(jobs))
    with quiet(module, hash64("reach-pass", seed, rank_and_world()[0]), cost, reward) as device:
        if reward is not None:
            place(reward, device)
        for batch in answers(
            module, data, jobs, numbers, batch_size=batch_size, reference=True, cost=cost,
            what="batch of the reference's responses",
        ):  # fmt: skip
            assert batch.cost is not None
            assert batch.text is not None
            costs.put(batch, batch.cost)
            reward_n = _rewards(reward, batch.prompt, batch.text)
            others.put(batch, torch.cat([reward_n[:, None], batch.malformed()], dim=-1))
        cost_n, other_n3 = costs.everywhere(device), others.everywhere(device)
    shape = (len(chosen), samples_per_prompt)
    reward_PK = other_n3[:, 0].reshape(shape).numpy()
    samples = scored_samples(reward_PK, cost_n.reshape(*shape, *cost_n.shape[1:]).numpy())
    truncated, empty = other_n3[:, 1:].mean(0).tolist()
    return Drawn(samples, truncated, empty)


def _rewards(reward: CostFunction | None, prompts: Sequence[Prompt], texts: Sequence[str]) -> Tensor:
    """[n] float64."""
    if reward is None:
        return torch.zeros(len(texts), dtype=torch.float64)
    found = score(reward, [prompt.text for prompt in prompts], texts)
    if found.ndim != 1:
        raise ValueError(f"the reward {name_of(reward)} gave rows of {found.shape[1]} numbers: it must give one number")
    check_scores(reward, found, [f"a response to prompt {prompt.prompt_id}" for prompt in prompts])
    return found
