"""Responses to held-out prompts: the cost of the policy's responses, and its drift from the reference.

Letters: n responses, K columns.
"""

import numpy as np
import torch
from torch import Tensor

from lit_safe.evaluation.held_out import Columns, Evaluated, HeldOut, Measure
from lit_safe.execution.quiet import device_of
from lit_safe.hashing import hash64, uniforms
from lit_safe.protocols.pair import has_reference
from lit_safe.rollouts.answers import Job, Rows, answers
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
"""Columns of the reference's own response, drawn with the same random numbers."""

ADDED_VALUES = ("entropy",)
"""Columns that tables and checkpoints of earlier versions do not have."""

IMPLAUSIBLE = 0.001
"""A response is implausible below this quantile of log-probs per token of the reference's own responses."""


def choose_jobs(data: HeldOut, prompts: int, samples: int, seed: int) -> list[Job]:
    """Choose the prompts of the val split to answer, each with ``samples`` response numbers."""
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
    """Answer the jobs. Returns one row per job (all rows on every rank) and this rank's responses as text.

    With ``drift``, the reference answers too, and both models are measured on its responses. Without it, or without a
    reference, these columns are NaN.
    """
    width = len(ROLLOUT_VALUES) - len(OWN_VALUES)
    mine, own = Rows(len(jobs)), Rows(len(jobs))
    samples: list[ScoredResponse] = []
    device = device_of(module)
    drift = drift and has_reference(module.pair)

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
            # computed as for the policy's responses, so equal responses have bitwise equal log-probs
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
    """The table, with NaN in columns that an earlier version did not write."""
    if not rollouts:
        return rollouts
    unknown = np.full(len(rollouts["prompt_id"]), np.nan)
    return {**dict.fromkeys(ADDED_VALUES, unknown), **rollouts}


def rollout_measures(rollouts: Columns) -> dict[str, Measure]:
    """The reported measures of the rows.

    ``drift/forward_kl`` is -mean log(policy / reference) over responses of the reference, in nats. It is an unbiased
    estimate of KL(reference || policy), for responses up to the maximum length. ``drift/implausible`` is the share of
    the policy's responses whose log-prob per token under the reference is below the 0.1 % quantile of the reference's
    own responses. With n < 1,000 responses, this quantile is their lowest value. A policy without drift then has an
    expected share of 1 / (n + 1).
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
