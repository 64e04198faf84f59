"""A world small enough to solve: a table of logits for a policy, its responses' rewards and costs known.

Letters: P prompts, K responses to each, C constraints. Token p is prompt p, token P + k response k.
"""

import math
from itertools import combinations
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lit_safe.hashing import uniforms
from lit_safe.sequences import pack_sequences
from lit_safe.types import (
    IGNORE,
    Annotation,
    CostEstimate,
    PackedBatch,
    PackedSequences,
    Pair,
    Prompt,
    SequenceLogp,
    SequenceStats,
)

P, K = 4, 5
REWARD = torch.tensor([2.0, 1.5, 0.5, 0.0, -0.5]) + uniforms(P * K, "reward").view(P, K)  # helpful is unsafe
COST = torch.tensor([1.0, 0.5, -0.5, -0.8, -1.0]) + 0.4 * uniforms(P * K, "cost").view(P, K) - 0.2
BETA = 0.5


class Table(nn.Module):
    """A PairModel whose policy is softmax of ``logit_PK`` and whose reference is softmax of ``reference_PK``."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_PK = nn.Parameter(uniforms(P * K, "reference").view(P, K).float())
        self.register_buffer("reference_PK", self.logit_PK.detach().clone())
        self.dropout = nn.Dropout(0.5)  # in training it would change every log-prob; it stands for any such layer

    def load(self) -> None: ...

    def _logp(self, logit_PK: Tensor, sequences: PackedSequences) -> Tensor:
        at = (sequences.target != IGNORE).nonzero()[:, 0]
        logp = logit_PK.log_softmax(-1)[sequences.input_ids[at], sequences.target[at] - P]
        row = torch.bucketize(at, sequences.cu_seqlens[1:].long(), right=True)
        return logp.new_zeros(len(sequences.cu_seqlens) - 1).index_add(0, row, logp)

    def policy_logp(self, sequences: PackedSequences) -> Tensor:
        return self._logp(self.logit_PK, sequences)

    def reference_logp(self, sequences: PackedSequences) -> Tensor:
        return self._logp(self.reference_PK, sequences).detach()

    def both_logp(self, sequences: PackedSequences) -> SequenceLogp:
        return SequenceLogp(self.policy_logp(sequences), self.reference_logp(sequences))

    def sequence_stats(self, sequences: PackedSequences) -> SequenceStats:
        policy, reference = self.logit_PK.detach().log_softmax(-1), self.reference_PK.log_softmax(-1)
        kl_P, entropy_P = (policy.exp() * (policy - reference)).sum(-1), -(policy.exp() * policy).sum(-1)
        prompt_N = sequences.input_ids[sequences.cu_seqlens[:-1].long()]
        logps = (self._logp(logit_PK, sequences) for logit_PK in (self.logit_PK.detach(), self.reference_PK))
        return SequenceStats(*logps, kl_P[prompt_N], entropy_P[prompt_N])

    def support_logratio(self, sequences: PackedSequences, floor: float) -> Tensor:
        policy_PK, reference_PK = self.logit_PK.log_softmax(-1), self.reference_PK.log_softmax(-1)
        outside_PK = reference_PK < math.log(floor)
        mass = [logp_PK.masked_fill(outside_PK, -torch.inf).logsumexp(-1) for logp_PK in (policy_PK, reference_PK)]
        return (mass[0] - mass[1]).clamp(max=0)[sequences.input_ids[sequences.cu_seqlens[:-1].long()]]

    def generate(
        self, prompts: Any, uniforms: Tensor, temperature: float = 1.0, reference: bool = False
    ) -> list[list[int]]:
        logit_PK = self.reference_PK if reference else self.dropout(self.logit_PK)
        chance_PK = (logit_PK / temperature).double().softmax(-1)
        cdf_nK = chance_PK[[prompt[0] for prompt in prompts]].cumsum(-1)
        return [[P + min(int((c < u).sum()), K - 1)] for c, u in zip(cdf_nK, uniforms[:, 0], strict=True)]

    def stop_at(self, ids: Any) -> None: ...

    def stop_tokens(self) -> frozenset[int]:
        return frozenset(range(P, P + K))

    def expected(self, value_PK: Tensor) -> float:
        """The mean over prompts of a response's value under the policy."""
        return float((self.logit_PK.detach().double().softmax(-1) * value_PK).sum(-1).mean())


def optimum(multiplier: float) -> Tensor:
    """[P, K] log-probs of the closed form: pi_ref * exp((r - multiplier * c) / beta), normalised."""
    return (Table().reference_PK.double().log_softmax(-1) + (REWARD - multiplier * COST) / BETA).log_softmax(-1)


def optimal_cost(multiplier: float) -> float:
    return float((optimum(multiplier).exp() * COST).sum(-1).mean())


def solve(limit: float) -> float:
    """The multiplier whose closed-form policy costs ``limit``, by bisection; 0 where the limit does not bind."""
    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if optimal_cost(middle) > limit else (low, middle)
    return (low + high) / 2 if optimal_cost(0.0) > limit else 0.0


def objective_value(logp_PK: Tensor, multiplier: float) -> float:
    """E[r - multiplier * c] - beta * KL: what C-DPO maximises, and so what regret is measured in."""
    gap = logp_PK - Table().reference_PK.double().log_softmax(-1)
    return float((logp_PK.exp() * (REWARD - multiplier * COST - BETA * gap)).sum(-1).mean())


def all_pairs(costs_PKC: Tensor = COST, rank: int = 0, world: int = 1) -> PackedBatch:
    """A rank's share of all pairs of responses to every prompt, the more helpful one chosen, as one batch."""
    every = [(p, *sorted(pair, key=lambda k: -REWARD[p, k])) for p in range(P) for pair in combinations(range(K), 2)]
    triples = every[rank::world]
    p, y, z = torch.tensor(triples).T
    both = [[P + int(k)] for _, *pair in triples for k in pair]
    one_B = torch.ones(len(triples), dtype=torch.int64)
    return PackedBatch(
        pack_sequences([[int(i)] for i in p for _ in range(2)], both),
        Annotation(
            Pair(REWARD[p, y].float(), REWARD[p, z].float()), Pair(costs_PKC[p, y].float(), costs_PKC[p, z].float())
        ),
        torch.arange(len(triples)),
        p,
        Pair(one_B, one_B),
        one_B.bool(),
        torch.tensor(len(every)),
    )


class Steps(list[Any]):
    """Items of an epoch, all alike: a loader that goes on from anywhere, which Lightning asks it to say."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Toy(LightningDataModule):
    """``steps`` times all pairs an epoch."""

    responses_from = frozenset({"reference"})
    stop_ids = frozenset(range(P, P + K))  # a response is one token

    def __init__(self, steps: int = 4, costs_PKC: Tensor = COST, constraints: tuple[str, ...] = ("harm",)) -> None:
        super().__init__()
        self.steps, self.costs_PKC, self.constraints = steps, costs_PKC, constraints

    def require(self, needs: Any) -> None: ...

    def train_dataloader(self) -> Steps:
        own = all_pairs(self.costs_PKC, self.trainer.global_rank, self.trainer.world_size)
        return Steps([[own]] * self.steps)

    def val_dataloader(self) -> DataLoader:
        return DataLoader([all_pairs(self.costs_PKC)], batch_size=None)

    def batches_of_steps(self, total: int, each: int) -> tuple[list[PackedBatch], float]:
        """No pair is used more than once, so that ``precompute_reference: auto`` scores none ahead."""
        return [], 1.0

    def prompts(self, split: str) -> list[Prompt]:
        return [Prompt(100 + p, (p,), f"prompt {p}") for p in range(P)] if split == "dual" else []

    def dual_pairs(self) -> list[PackedBatch]:
        return [all_pairs(self.costs_PKC)]

    def decode(self, ids: list[int]) -> str:
        return " ".join(f"response {i - P}" for i in ids)


class TableCost:
    """The cost of a response as the table has it."""

    def __call__(self, prompts: list[str], responses: list[str]) -> Tensor:
        at = [(int(p.split()[1]), int(r.split()[1])) for p, r in zip(prompts, responses, strict=True)]
        return torch.stack([COST[index] for index in at])


class ExactCost:
    """An estimator without error, for tests of what happens with the estimate."""

    def __init__(self, costs: tuple[Tensor, ...] = (COST,)) -> None:
        self.costs = costs
        self.epochs: list[int] = []

    def __call__(self, module: Any, data: Any, *, seed: int, epoch: int) -> Any:
        self.epochs.append(epoch)
        mean = torch.tensor([module.pair.expected(cost) for cost in self.costs], dtype=torch.float64)
        mean = mean if len(self.costs) > 1 else mean[0]
        return CostEstimate(mean, torch.zeros_like(mean), P * K, torch.tensor(0.5), float(P * K))
