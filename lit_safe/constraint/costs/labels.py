"""Estimates the probability of unsafe responses from labels alone: no sampling and no score model.

Letters: n labelled responses of the dual split, C constraints, G prompts.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from lit_safe.constraint.costs import HeldOut
from lit_safe.constraint.costs.labelled_rows import labelled_rows
from lit_safe.errors.message import SettingError
from lit_safe.protocols.pair import HasPair
from lit_safe.statistics.clustered import clustered_mean
from lit_safe.types import CostEstimate

Labels = Literal["flags", "probability"]


class LabelledUnsafe:
    """Estimates how often the policy is unsafe when it chooses among the labelled responses to a prompt.

    The responses to each prompt are weighted by exp(log policy - log reference), with sum 1. Before training this is
    the share of unsafe responses among the labels. It is the unsafe share of fresh responses only if the reference
    wrote the labelled ones and there are many to each prompt. With two responses to each prompt it says how far the
    policy prefers the safe ones. Use rollouts if a scorer of text is at hand.

    The limit is then a share in [0, 1]. Nothing is sampled, so ``seed`` and ``epoch`` are unused.

    Args:
        labels: ``flags`` counts a response as unsafe if its cost is > 0. ``probability`` takes the cost as a calibrated
            probability of unsafe, in [0, 1].

    Raises:
        ValueError: If ``labels`` is unknown.
    """

    def __init__(self, labels: Labels = "flags") -> None:
        if labels not in get_args(Labels):
            raise ValueError(f"labels must be one of {get_args(Labels)}, got {labels!r}")
        self.labels = labels

    def __call__(self, module: HasPair, data: HeldOut, *, seed: int, epoch: int) -> CostEstimate:
        """Estimate the probability; see the class. ``effective`` is the sum of the prompts' effective sample sizes.

        Raises:
            ValueError: If a label is missing or no probability, or there are fewer than two prompts.
        """
        logratio_n, cost, prompt_n = labelled_rows(module, data, "labels-pass")
        unsafe = self._unsafe(cost)
        weight_n, sizes_G = _weights(logratio_n, prompt_n)
        columns = [clustered_mean(u, prompt_n, weight_n, share=True) for u in unsafe.reshape(len(unsafe), -1).T]
        if columns[0].clusters < 2:
            raise ValueError("an estimate of the cost needs labels of at least two prompts of the dual split: add data")
        rows = [(c.mean, c.stderr if c.stderr > 1e-12 else math.nan, *c.interval) for c in columns]
        mean, stderr, *bounds = torch.tensor(rows, dtype=torch.float64).T.reshape(4, *unsafe.shape[1:])
        any_n = (unsafe > 0.5).reshape(len(unsafe), -1).any(-1).double()
        share = (weight_n * any_n).sum() / weight_n.sum()
        return CostEstimate(mean, stderr, len(weight_n), share, float(sizes_G.sum()),
                            clusters=len(sizes_G), bounds=torch.stack(bounds))  # fmt: skip

    def check(self, data: HeldOut, constraints: int) -> None:
        """Check the labels of the first batch, before the first step.

        Raises:
            SettingError: If a probability is not in [0, 1].
        """
        self._unsafe(torch.cat(tuple(next(iter(data.dual_pairs())).label.cost)).double())

    def _unsafe(self, cost: Tensor) -> Tensor:
        """Probabilities of unsafe, in the shape of the costs."""
        if self.labels == "flags":
            return (cost > 0).double()
        known = cost[cost.isfinite()]
        outside = known[(known < 0) | (known > 1)]
        if len(outside):
            raise SettingError(
                f"labels: probability needs costs in [0, 1], and one is {float(outside[0]):g}: use labels: flags, or "
                "annotate probabilities"
            )
        return cost


def _weights(logratio_n: Tensor, prompt_n: Tensor) -> tuple[Tensor, Tensor]:
    """[n] weights with sum 1 for each prompt, and [G] effective sample sizes 1 / sum of squares."""
    _, index_n, count_G = prompt_n.unique(return_inverse=True, return_counts=True)
    highest_G = logratio_n.new_full((len(count_G),), -torch.inf).scatter_reduce(0, index_n, logratio_n, "amax")
    weight_n = (logratio_n - highest_G[index_n]).exp()
    total_G = torch.zeros_like(highest_G).index_add(0, index_n, weight_n)
    weight_n = weight_n / total_G[index_n]
    return weight_n, 1 / torch.zeros_like(highest_G).index_add(0, index_n, weight_n.square())
