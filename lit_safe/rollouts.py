"""Responses to held-out prompts: what the policy's cost, and how far it has drifted from the reference's.

Letters: n responses, K columns.
"""

import numpy as np
import torch
from torch import Tensor

from lit_safe.answers import Job, Rows, answers
from lit_safe.hashing import hash64, uniforms
from lit_safe.held_out import Columns, Evaluated, HeldOut, Measure
from lit_safe.quiet import device_of
from lit_safe.types import CostFunction, Prompt, ScoredResponse

ROLLOUT_IDS = ("prompt_id", "sample")
ROLLOUT_VALUES = (
    "cost",
    "tokens",
    "kl",
    "entropy",
    "reference_logp",
    "own_tokens",
    "own_reference_logp",
    "own_logratio",
)
OWN_VALUES = ROLLOUT_VALUES[-3:]
"""Of the reference's own response, with the same luck."""

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
    width = len(ROLLOUT_VALUES) - len(OWN_VALUES)
    mine, own = Rows(len(jobs)), Rows(len(jobs))
    samples: list[ScoredResponse] = []
    device = device_of(module)

    def draw(prompt: Prompt, sample: int) -> Tensor:
        return uniforms(max_new_tokens, "evaluation", seed, prompt.prompt_id, sample)

    for batch in answers(module, data, jobs, draw, batch_size=batch_size, cost=cost):
        assert batch.cost is not None
        stats = module.pair.sequence_stats(batch.packed(device))
        worst = batch.cost.reshape(len(batch.turn), -1).amax(-1)
        mine.put(batch, _columns(worst, batch.sizes(), stats.kl, stats.entropy, stats.reference_logp))
        samples += batch.scored()
    if drift:
        asked = "batch of the reference's responses"
        for batch in answers(module, data, jobs, draw, batch_size=batch_size, reference=True, what=asked):
            # the way the policy's responses are scored: equal responses are then equally plausible, to the bit
            stats = module.pair.sequence_stats(batch.packed(device))
            own.put(batch, _columns(batch.sizes(), stats.reference_logp, stats.policy_logp - stats.reference_logp))
    values = np.full((len(jobs), len(ROLLOUT_VALUES)), np.nan)
    values[:, :width] = mine.everywhere(device).numpy()
    if drift:
        values[:, width:] = own.everywhere(device).numpy()
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


def _columns(*columns: Tensor) -> Tensor:
    """[n, K] float64."""
    return torch.stack([column.cpu().double() for column in columns], dim=-1)
