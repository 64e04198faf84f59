"""What a policy does on held-out pairs and prompts: rows first, from which every mean and difference is taken.

Letters: B pairs of a batch, n rows, N = 2B sequences, K columns.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from lit_safe.hashing import hash64
from lit_safe.held_out import Columns, Evaluated, HeldOut, Measure
from lit_safe.metrics import better
from lit_safe.paired_rows import orientation, shared_rows, turned
from lit_safe.progress import progress
from lit_safe.quiet import device_of, quiet
from lit_safe.ranks import gather, rank_and_world
from lit_safe.rollouts import ROLLOUT_IDS, choose_jobs, completed, roll_out, rollout_measures
from lit_safe.statistics import Estimate, clustered_mean, paired_difference
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
    """``pairs`` has a row for each held-out pair, sorted by id; ``rollouts`` one for each response, empty without cost.

    Costs are those of the worst constraint, in cost units; log-probs, log-ratios and KL are sums over a response in
    nats. Every rank holds all rows. ``samples`` are some of this rank's responses as text, where they were asked for.
    """

    pairs: Columns
    rollouts: Columns
    samples: tuple[ScoredResponse, ...] = ()

    def measures(self) -> dict[str, Measure]:
        """Everything reported, by name; the names that training logs where they mean the same."""
        return {**_pair_measures(self.pairs), **rollout_measures(self.rollouts)}

    def summary(self) -> dict[str, Estimate]:
        """Means with errors clustered by prompt; a quantity that no row has is left out."""
        found = {
            name: clustered_mean(one.value, one.cluster, one.weight, share=one.share)
            for name, one in self.measures().items()
        }
        return {name: estimate for name, estimate in found.items() if estimate.count}

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The tables as plain tensors, loadable with ``weights_only=True``."""
        tables = {"pairs": self.pairs, "rollouts": self.rollouts}
        return {part: {k: torch.from_numpy(v.copy()) for k, v in table.items()} for part, table in tables.items()}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Mapping[str, Tensor]]) -> "Evaluation":
        """What ``state_dict`` gave."""
        pairs, rollouts = ({k: v.numpy() for k, v in state[part].items()} for part in ("pairs", "rollouts"))
        return cls(pairs, completed(rollouts))


def differences(after: Evaluation, before: Evaluation) -> dict[str, Estimate]:
    """``after - before`` of everything both have, over the rows both have, with errors clustered by prompt.

    Raises:
        ValueError: If the two have other labels of a pair, or call another of its responses chosen.
    """
    pairs = shared_rows(after.pairs, before.pairs, PAIR_IDS[:1])
    exchanged = int((orientation(*pairs) < 0).sum())
    if exchanged:
        raise ValueError(
            f"{exchanged} of {len(pairs[0]['pair_id'])} shared pairs call the other response chosen: bring one "
            "evaluation into the order of the other first (`oriented`)"
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
    """Evaluations in the order of another one, and how many of its shared pairs that took."""

    evaluations: tuple[Evaluation, ...]
    shared: int
    exchanged: int
    unclear: int


def oriented(evaluations: Sequence[Evaluation], like: Evaluation, *, other_order: bool = False) -> Oriented:
    """Evaluations of one run's pairs, with that response chosen which ``like`` calls chosen.

    Where the two disagree about any pair, only pairs remain that both have and whose labels or lengths tell the order;
    ``unclear`` counts those that do not. Where they agree about all, nothing changes.

    Args:
        evaluations: Of the same pairs, say before and after training.
        like: The evaluation whose order counts.
        other_order: The two are known to follow other orders, so that a pair which tells nothing may be either way.

    Raises:
        ValueError: If a pair has other labels here than there.
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
    """Measure the policy as it stands on the val split. Leaves no trace: no gradient, flags and random state restored.

    A response is a function of (seed, prompt, its number) and the policy, whatever was drawn before: two policies
    answer with the same luck, so that their difference is theirs.

    Args:
        module: The policy, its reference and objective.
        data: Where the val split is.
        cost: Scores responses that the policy samples; None samples none.
        pairs: At most so many held-out pairs, rounded up to whole batches; None takes all.
        prompts: At most so many held-out prompts to answer, chosen by hash.
        samples_per_prompt: Responses to each. More prompts tell more than more samples.
        max_new_tokens: Longest response.
        batch_size: Responses generated at once.
        seed: Of the responses.
        keep_samples: Keep so many responses of this rank as text.
        earlier: An evaluation with the same reference, whose log-probs of it are taken where it has the pair.
        untouched: The policy has not trained yet: if it scores the first batch bit for bit as its reference does, it is
            its reference, and the others are scored once.

    Raises:
        ValueError: If the cost function returns something that is no cost, or not finite.
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
    """[n] how many responses of a pair are unsafe, NaN where a cost is not known."""
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
    """1 where the margin has the sign of ``direction``, 0 where the other, one half for a tie; NaN as ``direction``."""
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
    """The batch with its reference log-probs, where all of them are known."""
    ids = batch.pair_id.tolist()
    if batch.reference_logp is not None or not all(i in known for i in ids):
        return batch
    logp_B2 = torch.tensor([known[i] for i in ids])
    return batch._replace(reference_logp=Pair(logp_B2[:, 0], logp_B2[:, 1]))


def _pair_rows(batch: PackedBatch, policy: Pair, logratio: Pair, scored: Scored) -> Tensor:
    """[B, K] int64: ids, values by the bits of their float64, and whether the row is present."""
    worst = Pair(*(c.amax(-1) if c.ndim == 2 else c for c in batch.label.cost))
    values = (*policy, *logratio, *batch.response_length, batch.label.reward.margin, *worst, scored.weight)
    as_bits = torch.stack([value.cpu().double() for value in values], dim=-1).view(torch.int64)
    ids = torch.stack([batch.pair_id, batch.prompt_id], dim=-1).cpu()
    return torch.cat([ids, as_bits, batch.present.cpu().long()[:, None]], dim=-1)
