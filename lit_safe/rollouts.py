"""Responses to held-out prompts: what the policy's cost, and how far it has drifted from the reference's.

Letters: n responses, K columns.
"""

from collections.abc import Sequence

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from lit_safe.hashing import hash64, uniforms
from lit_safe.held_out import Columns, Evaluated, HeldOut, Measure
from lit_safe.progress import progress
from lit_safe.quiet import device_of
from lit_safe.ranks import merge, rank_and_world
from lit_safe.sequences import pack_sequences
from lit_safe.types import CostFunction, Prompt, ScoredResponse

Job = tuple[Prompt, int]
"""A prompt and the number of its response."""

ROLLOUT_IDS = ("prompt_id", "sample")
ROLLOUT_VALUES = (
    "cost",
    "tokens",
    "kl",
    "entropy",
    "reference_logp",
    "own_tokens",  # of the reference's own response, with the same luck
    "own_reference_logp",
    "own_logratio",
)

ADDED_VALUES = ("entropy",)
"""Columns that tables and checkpoints of an earlier version lack."""

IMPLAUSIBLE = 0.001
"""Quantile of the reference's own log-prob per token below which it finds a response implausible."""


def choose_jobs(data: HeldOut, prompts: int, samples: int, seed: int) -> list[Job]:
    """Which prompts of the val split are answered, and how often."""
    held_out = data.prompts("val")
    chosen = sorted(held_out, key=lambda p: (hash64("evaluation-prompt", seed, p.prompt_id), p.prompt_id))[:prompts]
    return [(prompt, sample) for prompt in chosen for sample in range(samples)]


def roll_out(
    module: Evaluated,
    data: HeldOut,
    cost: CostFunction,
    jobs: list[Job],
    max_new_tokens: int,
    batch_size: int,
    seed: int,
    drift: bool = False,
) -> tuple[Columns, list[ScoredResponse]]:
    """A row for each job, all of them on every rank, and this rank's responses as text.

    ``drift`` lets the reference answer too, and measures both on its responses; without it those columns are NaN.
    """
    rank, world = rank_and_world()
    # a remainder wraps around and counts for nothing, so that every rank runs as many batches
    turns = [turn % len(jobs) for turn in range(rank, -(-len(jobs) // world) * world, world)]
    own = range(rank, len(jobs), world)
    rows = torch.zeros(len(jobs), len(ROLLOUT_VALUES), dtype=torch.float64)
    samples: list[ScoredResponse] = []
    for start in progress(range(0, len(turns), batch_size), "batch of responses"):
        batch = turns[start : start + batch_size]
        answers = _answer(module, data, cost, [jobs[turn] for turn in batch], max_new_tokens, seed, drift)
        for turn, row, sample in zip(batch, *answers, strict=True):
            if turn in own:
                rows[turn] = row
                samples.append(sample)
    values = merge(rows, device_of(module)).numpy()
    ids = np.array([(prompt.prompt_id, sample) for prompt, sample in jobs], dtype=np.int64)
    columns: Columns = {name: ids[:, k] for k, name in enumerate(ROLLOUT_IDS)}
    return columns | {name: values[:, k] for k, name in enumerate(ROLLOUT_VALUES)}, samples


def completed(rollouts: Columns) -> Columns:
    """The table with NaN in the columns that the version which wrote it did not measure yet."""
    if not rollouts:
        return rollouts
    unknown = np.full(len(rollouts["prompt_id"]), np.nan)
    return {**dict.fromkeys(ADDED_VALUES, unknown), **rollouts}


def rollout_measures(rollouts: Columns) -> dict[str, Measure]:
    """What is reported of the rows.

    ``drift/forward_kl`` is -mean log(policy / reference) over responses of the reference: an unbiased estimate of
    KL(reference || policy) up to the longest response, nats. ``drift/implausible`` is the share of the policy's
    responses whose log-prob per token under the reference lies below the 0.1 % quantile of the reference's own; of
    fewer than 1,000 that quantile is the lowest, below which lies 1 in n + 1 of a policy that has not drifted.
    """
    if not rollouts:
        return {}
    prompt = rollouts["prompt_id"].astype(np.int64)
    cost, tokens, kl, entropy, logp, own_tokens, own_logp, own_logratio = (
        rollouts[name].astype(np.float64) for name in ROLLOUT_VALUES
    )
    per_token, own_per_token = logp / tokens.clip(1), own_logp / own_tokens.clip(1)
    lowest = np.quantile(own_per_token, IMPLAUSIBLE, method="lower") if len(own_per_token) else np.nan
    implausible = np.where(np.isnan(per_token - lowest), np.nan, per_token < lowest)
    return {
        "rollouts/unsafe": Measure((cost > 0).astype(np.float64), prompt, share=True),
        "rollouts/cost": Measure(cost, prompt),
        "rollouts/tokens": Measure(tokens, prompt),
        "rollouts/kl_per_token": Measure(kl / tokens.clip(1), prompt, tokens),
        "rollouts/entropy_per_token": Measure(entropy / tokens.clip(1), prompt, tokens),
        "drift/forward_kl": Measure(-own_logratio, prompt),
        "drift/implausible": Measure(implausible.astype(np.float64), prompt, share=True),
    }


def _answer(
    module: Evaluated, data: HeldOut, cost: CostFunction, jobs: list[Job], tokens: int, seed: int, drift: bool
) -> tuple[Tensor, list[ScoredResponse]]:
    """[n, K] the values of one response to each job; and the texts with their costs."""
    prompts = [prompt for prompt, _ in jobs]
    prompt_ids = [prompt.ids for prompt in prompts]
    uniform = torch.stack([uniforms(tokens, "evaluation", seed, p.prompt_id, sample) for p, sample in jobs])
    responses = module.pair.generate(prompt_ids, uniform)
    texts = [data.decode(ids) for ids in responses]
    costs = cost([p.text for p in prompts], texts).cpu().double()
    if len(costs) != len(jobs):
        raise ValueError(f"the cost function returned {len(costs)} costs of {len(jobs)} responses")
    costs = costs.reshape(len(jobs), -1)
    for prompt, row in zip(prompts, costs, strict=True):
        if not row.isfinite().all():
            raise ValueError(f"the cost function returned {row.tolist()} for a response to prompt {prompt.prompt_id}")
    packed = move_data_to_device(pack_sequences(prompt_ids, responses), device_of(module))
    stats = module.pair.sequence_stats(packed)
    columns = [costs.amax(-1), _lengths(responses), stats.kl, stats.entropy, stats.reference_logp]
    columns += _drift(module, prompt_ids, uniform) if drift else [torch.full((len(jobs),), torch.nan)] * 3
    samples = [
        ScoredResponse(prompt.text, text, tuple(row.tolist()))
        for prompt, text, row in zip(prompts, texts, costs, strict=True)
    ]
    return torch.stack([column.cpu().double() for column in columns], dim=-1), samples


def _drift(module: Evaluated, prompts: Sequence[Sequence[int]], uniform: Tensor) -> list[Tensor]:
    """The last three columns: both models on the reference's responses."""
    responses = module.pair.generate(prompts, uniform, reference=True)
    packed = move_data_to_device(pack_sequences(prompts, responses), device_of(module))
    # the way the policy's responses are scored: equal responses are then equally plausible, to the bit
    stats = module.pair.sequence_stats(packed)
    return [_lengths(responses), stats.reference_logp, stats.policy_logp - stats.reference_logp]


def _lengths(responses: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor([len(ids) for ids in responses], dtype=torch.float64)
