"""From scored responses to an estimate of E[cost].

Letters: n responses, C constraints.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lit_safe.statistics import clustered_mean


class MeanCost(NamedTuple):
    """A mean and its standard error, [] or [C], and bounds below and above that hold with 95 % each, [2] or [2, C].

    The error is NaN where prompts do not vary: few equal costs do not say that all are equal. Bounds are NaN there and
    with few prompts.
    """

    mean: Tensor
    stderr: Tensor
    bounds: Tensor


def mean_cost(cost: Tensor, weight_n: Tensor, prompt_n: Tensor) -> MeanCost:
    """The self-normalised mean of costs [n] or [n, C], clustered by prompt.

    The bounds are the ends of an interval that allows for skewed costs. Student's t would call a limit met too often:
    its upper bound holds 78 to 90 % of log-normal means of 8 to 64 prompts (``docs/intervals.md``).

    Raises:
        ValueError: With fewer than two prompts, which have no standard error.
    """
    columns = [clustered_mean(c, prompt_n, weight_n) for c in cost.reshape(len(cost), -1).T]
    if not columns or columns[0].clusters < 2:
        raise ValueError("an estimate of the cost needs responses to at least two prompts of the dual split: add data")
    rows = [(c.mean, c.stderr if c.stderr > 1e-12 * abs(c.mean) else math.nan, *c.interval) for c in columns]
    mean, stderr, *bounds = torch.tensor(rows, dtype=torch.float64).T.reshape(4, *cost.shape[1:])
    return MeanCost(mean, stderr, torch.stack(bounds))
