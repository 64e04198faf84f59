"""Computes an estimate of E[cost] from scored responses.

Letters: n responses, C constraints.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lit_safe.statistics.clustered import clustered_mean


class MeanCost(NamedTuple):
    """A mean and its standard error, [] or [C], and a lower and an upper bound, [2] or [2, C], each valid with 95 %.

    The error is NaN if the cost does not vary between prompts: a few equal costs do not show that all are equal. The
    bounds are NaN in this case and with few prompts.
    """

    mean: Tensor
    stderr: Tensor
    bounds: Tensor


def mean_cost(cost: Tensor, weight_n: Tensor, prompt_n: Tensor) -> MeanCost:
    """The self-normalised mean of costs [n] or [n, C], clustered by prompt.

    The bounds are the ends of an interval that allows for skewed costs. With Student's t, limits would be reported as
    met too often: for log-normal costs and 8 to 64 prompts, its upper bound covers the mean in only 78 to 90 % of cases
    (``docs/intervals.md``).

    Raises:
        ValueError: With fewer than two prompts, because there is no standard error then.
    """
    columns = [clustered_mean(c, prompt_n, weight_n) for c in cost.reshape(len(cost), -1).T]
    if not columns or columns[0].clusters < 2:
        raise ValueError("an estimate of the cost needs responses to at least two prompts of the dual split: add data")
    rows = [(c.mean, c.stderr if c.stderr > 1e-12 * abs(c.mean) else math.nan, *c.interval) for c in columns]
    mean, stderr, *bounds = torch.tensor(rows, dtype=torch.float64).T.reshape(4, *cost.shape[1:])
    return MeanCost(mean, stderr, torch.stack(bounds))


class Spread(NamedTuple):
    """How costs vary, [] or [C]: the standard deviation of one response's cost, and the variance within prompts.

    ``within`` is the variance among responses to one prompt, averaged over prompts; NaN if no prompt has two responses.
    """

    total: Tensor
    within: Tensor


def spread_of(cost: Tensor, prompt_n: Tensor) -> Spread:
    """The spread of equally weighted costs [n] or [n, C] of responses to at least two prompts."""
    columns = cost.double().reshape(len(cost), -1)
    _, index_n, count_G = prompt_n.unique(return_inverse=True, return_counts=True)
    prompts = len(count_G)
    deviation = columns - columns.mean(0)
    total = (deviation.square().mean(0) * prompts / (prompts - 1)).sqrt()
    sum_GC = columns.new_zeros(prompts, columns.shape[1]).index_add(0, index_n, columns)
    residual = (columns - (sum_GC / count_G[:, None])[index_n]).square()
    square_GC = torch.zeros_like(sum_GC).index_add(0, index_n, residual)
    several_G = count_G > 1
    within = (square_GC[several_G] / (count_G[several_G, None] - 1)).mean(0)  # NaN where there is none
    return Spread(total.reshape(cost.shape[1:]), within.reshape(cost.shape[1:]))


def unsafe_interval(unsafe_n: Tensor, weight_n: Tensor, prompt_n: Tensor) -> dict[str, float]:
    """The 95 % interval of the share of unsafe responses [n], clustered by prompt, by logged name."""
    low, high = clustered_mean(unsafe_n.double(), prompt_n, weight_n, share=True).interval
    return {"dual/unsafe_low": low, "dual/unsafe_high": high}
