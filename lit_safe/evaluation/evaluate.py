"""Evaluates a policy on held-out pairs and prompts.

Returns one row per pair and per response. All means and differences are computed from these rows.

Letters: B pairs of a batch, n rows, N = 2B sequences, K columns.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from lit_safe.evaluation.held_out import Columns, Evaluated, HeldOut, Measure
from lit_safe.evaluation.paired_rows import orientation, shared_rows, turned
from lit_safe.evaluation.responses import ROLLOUT_IDS, choose_jobs, completed, roll_out, rollout_measures
from lit_safe.execution.progress import progress
from lit_safe.execution.quiet import device_of, quiet
from lit_safe.execution.ranks import gather, rank_and_world
from lit_safe.hashing import hash64
from lit_safe.statistics.clustered import Estimate, clustered_mean, paired_difference
from lit_safe.training.metrics import better
from lit_safe.types import CostFunction, PackedBatch, Pair, Scored, ScoredResponse

PAIR_IDS = ("pair_id", "prompt_id")
PAIR_VALUES = (
    "logp_chosen",
    "logp_rejected",
    "logratio_chosen",
    "logratio_rejected",
    "length_chosen",
    "length_rejected",
    "reward_margin",
    "cost_chosen",
    "cost_rejected",
    "weight",
)


class Evaluation(NamedTuple):
    """The rows of an evaluation. ``pairs`` has one per held-out pair, sorted by id; ``rollouts`` one per response.

    Without a cost function, ``rollouts`` is empty. Costs are those of the worst constraint, in cost units. Log-probs,
    log-ratios and KL are sums over a response in nats. Every rank has all rows. ``samples`` are some of this rank's
    responses as text, if requested.
    """

    pairs: Columns
    rollouts: Columns
    samples: tuple[ScoredResponse, ...] = ()

    def measures(self) -> dict[str, Measure]:
        """All reported measures by name. A measure that training logs too has the same name."""
        return {**_pair_measures(self.pairs), **rollout_measures(self.rollouts)}

    def summary(self) -> dict[str, Estimate]:
        """Means with errors clustered by prompt. Measures without any value are left out."""
        found = {
            name: clustered_mean(one.value, one.cluster, one.weight, share=one.share)
            for name, one in self.measures().items()
        }
        return {name: estimate for name, estimate in found.items() if estimate.count}

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The tables as tensors, loadable with ``weights_only=True``."""
        tables = {"pairs": self.pairs, "rollouts": self.rollouts}
        return {part: {k: torch.from_numpy(v.copy()) for k, v in table.items()} for part, table in tables.items()}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Mapping[str, Tensor]]) -> "Evaluation":
        """Rebuild from the result of ``state_dict``."""
        pairs, rollouts = ({k: v.numpy() for k, v in state[part].items()} for part in ("pairs", "rollouts"))
        return cls(pairs, completed(rollouts))


def differences(after: Evaluation, before: Evaluation) -> dict[str, Estimate]:
    """``after - before`` of all shared measures over all shared rows, with errors clustered by prompt.

    Raises:
        ValueError: If the two differ in the labels of a pair or in which response is chosen.
    """
    pairs = shared_rows(after.pairs, before.pairs, PAIR_IDS[:1])
    exchanged = int((orientation(*pairs) < 0).sum())
    if exchanged:
        raise ValueError(
            f"{exchanged} of {len(pairs[0]['pair_id'])} shared pairs have the other response as chosen: bring "
            "the two evaluations into the same order first (`oriented`)"
        )
    rollouts = shared_rows(after.rollouts, before.rollouts, ROLLOUT_IDS)
    ours = Evaluation(pairs[0], rollouts[0]).measures()
    theirs = Evaluation(pairs[1], rollouts[1]).measures()
    found = {
        name: paired_difference(
            one.value, theirs[name].value, one.cluster, one.weight, theirs[name].weight, share=one.share
        )
        for name, one in ours.items()
    }
    return {name: estimate for name, estimate in found.items() if estimate.count}


class Oriented(NamedTuple):
    """Evaluations in the order of another one, with the numbers of shared, exchanged and unclear pairs."""

    evaluations: tuple[Evaluation, ...]
    shared: int
    exchanged: int
    unclear: int


def oriented(evaluations: Sequence[Evaluation], like: Evaluation, *, other_order: bool = False) -> Oriented:
    """Exchange chosen and rejected responses so that they agree with those of ``like``.

    If the two agree on all pairs, nothing changes. Otherwise only shared pairs are kept whose labels or lengths
    determine the order. ``unclear`` counts the shared pairs for which they do not.

    Args:
        evaluations: Evaluations of the same pairs, for example before and after training.
        like: The evaluation whose order is used.
        other_order: Whether the two are known to use different orders. Then a pair whose labels and lengths do not
            determine the order may be in either order.

    Raises:
        ValueError: If the labels of a pair differ.
    """
    shared = [shared_rows(one.pairs, like.pairs, PAIR_IDS[:1]) for one in evaluations]
    order_n = orientation(*shared[0])
    exchanged, unclear = int((order_n < 0).sum()), int((order_n == 0).sum())
    if not exchanged and not (other_order and unclear):
        return Oriented(tuple(evaluations), len(order_n), 0, unclear)
    clear = order_n != 0
    pairs = [{name: column[clear] for name, column in turned(own, order_n < 0).items()} for own, _ in shared]
    found = (one._replace(pairs=table) for one, table in zip(evaluations, pairs, strict=True))
    return Oriented(tuple(found), len(order_n), exchanged, unclear)


def evaluate(
    module: Evaluated,
    data: HeldOut,
    *,
    cost: CostFunction | None = None,
    pairs: int | None = None,
    prompts: int = 32,
    samples_per_prompt: int = 1,
    max_new_tokens: int = 48,
    batch_size: int = 16,
    seed: int = 0,
    keep_samples: int = 0,
    earlier: "Evaluation | None" = None,
    untouched: bool = False,
) -> Evaluation:
    """Evaluate the current policy on the val split. Gradients, module flags and random state are restored afterwards.

    A response depends only on (seed, prompt, its number) and the policy. Two policies are therefore evaluated with the
    same random numbers, and differences between them are due to the policies.

    Args:
        module: The policy, its reference and objective.
        data: Gives the val split.
        cost: Scores the policy's responses. None samples no responses.
        pairs: Maximum number of held-out pairs, rounded up to whole batches. None takes all.
        prompts: Maximum number of held-out prompts to answer, chosen by hash.
        samples_per_prompt: Number of responses to each prompt. More prompts reduce the error more than more samples.
        max_new_tokens: Maximum length of a response in tokens.
        batch_size: Number of responses generated at once.
        seed: Seed of the responses' random numbers.
        keep_samples: Number of this rank's responses to keep as text.
        earlier: An evaluation with the same reference. Its reference log-probs are reused for the pairs that it has.
        untouched: Whether the policy has not been trained yet. If it then scores the first batch bitwise as its
            reference does, the two are treated as equal and the other batches are scored only once.

    Raises:
        ValueError: If the cost function returns something that is not a cost, or a cost is not finite.
    """
    with quiet(module, hash64("evaluation", seed), cost):
        table = _score_pairs(module, data, pairs, {} if earlier is None else _reference_of(earlier.pairs), untouched)
        rollouts: Columns = {}
        samples: list[ScoredResponse] = []
        if cost is not None:
            jobs = choose_jobs(data, prompts, samples_per_prompt, seed)
            rollouts, samples = roll_out(module, data, cost, jobs, max_new_tokens, batch_size, seed, drift=True)
    return Evaluation(table, rollouts, tuple(samples[:keep_samples]))


def stratum(pairs: Columns) -> npt.NDArray[np.float64]:
    """[n] number of unsafe responses of each pair. NaN if a cost is unknown."""
    unsafe = (pairs["cost_chosen"] > 0).astype(np.float64) + (pairs["cost_rejected"] > 0)
    return np.where(np.isnan(pairs["cost_chosen"] + pairs["cost_rejected"]), np.nan, unsafe)


def _pair_measures(pairs: Columns) -> dict[str, Measure]:
    prompt = pairs["prompt_id"]
    logp, logratio, length = (
        Pair(*(torch.from_numpy(pairs[f"{name}_{side}"]) for side in Pair._fields))
        for name in ("logp", "logratio", "length")
    )
    per_token = logp.chosen / length.chosen.clamp(min=1) - logp.rejected / length.rejected.clamp(min=1)
    # +1 where the chosen response is the only safe one, -1 where the rejected one is
    safer = np.sign(pairs["cost_rejected"].clip(0)) - np.sign(pairs["cost_chosen"].clip(0))
    one_safe = np.where(stratum(pairs) == 1, safer, np.nan)
    margins = {"logps/accuracies": logp.margin, "logps/accuracies_per_token": per_token}
    values = {
        **{name: better(margin).numpy() for name, margin in margins.items()},
        **{f"{name}/safer": _toward(margin.numpy(), one_safe) for name, margin in margins.items()},
        "rewards/accuracies": better(logratio.margin).numpy(),
        "rewards/accuracies/safer": _toward(logratio.margin.numpy(), one_safe),
        "logratios/margins": logratio.margin.numpy(),
        **{f"logratios/{side}": pairs[f"logratio_{side}"] for side in Pair._fields},
        **{f"logps/{side}": pairs[f"logp_{side}"] for side in Pair._fields},
    }
    return {
        name: Measure(value.astype(np.float64), prompt.astype(np.int64), share="/accuracies" in name)
        for name, value in values.items()
    }


def _toward(margin: npt.NDArray[np.float64], direction: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """1 if the margin has the sign of ``direction``, 0 if the opposite, 0.5 for a tie. NaN where ``direction`` is."""
    return (np.sign(margin) * direction + 1) / 2


def _score_pairs(
    module: Evaluated, data: HeldOut, most: int | None, known: Mapping[int, tuple[float, float]], untouched: bool
) -> Columns:
    device = device_of(module)
    _, world = rank_and_world()
    rows: list[Tensor] = []
    seen = 0
    own_reference = False
    for batch in progress(data.val_dataloader(), "held-out batch"):
        batch = move_data_to_device(_with_reference(batch, known), device)
        policy, logratio, scored = module(batch, own_reference=True) if own_reference else module(batch)
        own_reference = own_reference or (untouched and not rows and not any(bool(side.any()) for side in logratio))
        rows.append(_pair_rows(batch, policy, logratio, scored))
        seen += world * len(batch.pair_id)
        if most is not None and seen >= most:
            break
    if not rows:
        raise ValueError("the val split has no pairs")
    table = gather(torch.cat(rows), device)
    table = table[table[:, -1] == 1][:, :-1]
    ids, values = table[:, : len(PAIR_IDS)], table[:, len(PAIR_IDS) :].contiguous().view(torch.float64)
    order = ids[:, 0].argsort(stable=True)
    return {
        **{name: ids[order, k].numpy() for k, name in enumerate(PAIR_IDS)},
        **{name: values[order, k].numpy() for k, name in enumerate(PAIR_VALUES)},
    }


def _reference_of(pairs: Columns) -> dict[int, tuple[float, float]]:
    """The reference's log-probs of both responses, by pair id."""
    sides = (pairs[f"logp_{side}"] - pairs[f"logratio_{side}"] for side in Pair._fields)
    chosen, rejected = (side.tolist() for side in sides)
    return dict(zip(pairs["pair_id"].tolist(), zip(chosen, rejected, strict=True), strict=True))


def _with_reference(batch: PackedBatch, known: Mapping[int, tuple[float, float]]) -> PackedBatch:
    """The batch with its reference log-probs, if all of them are known."""
    ids = batch.pair_id.tolist()
    if batch.reference_logp is not None or not all(i in known for i in ids):
        return batch
    logp_B2 = torch.tensor([known[i] for i in ids])
    return batch._replace(reference_logp=Pair(logp_B2[:, 0], logp_B2[:, 1]))


def _pair_rows(batch: PackedBatch, policy: Pair, logratio: Pair, scored: Scored) -> Tensor:
    """[B, K] int64: ids, values as the bits of their float64, and whether the row is present."""
    worst = Pair(*(c.amax(-1) if c.ndim == 2 else c for c in batch.label.cost))
    values = (*policy, *logratio, *batch.response_length, batch.label.reward.margin, *worst, scored.weight)
    as_bits = torch.stack([value.cpu().double() for value in values], dim=-1).view(torch.int64)
    ids = torch.stack([batch.pair_id, batch.prompt_id], dim=-1).cpu()
    return torch.cat([ids, as_bits, batch.present.cpu().long()[:, None]], dim=-1)
