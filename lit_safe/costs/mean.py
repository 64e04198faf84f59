"""From scored responses to an estimate of E[cost].

Letters: n responses, C constraints.
"""

import math

import torch
from torch import Tensor

from lit_safe.statistics import clustered_mean


def mean_cost(cost: Tensor, weight_n: Tensor, prompt_n: Tensor) -> tuple[Tensor, Tensor]:
    """The self-normalised mean of costs [n] or [n, C], and its standard error, clustered by prompt; [] or [C] each.

    Where prompts do not vary the error is NaN, not 0: few equal costs do not say that all are equal.

    Raises:
        ValueError: With fewer than two prompts, which have no standard error.
    """
    columns = [clustered_mean(c, prompt_n, weight_n) for c in cost.reshape(len(cost), -1).T]
    if not columns or columns[0].clusters < 2:
        raise ValueError("an estimate of the cost needs responses to at least two prompts of the dual split: add data")
    pairs = [(c.mean, c.stderr if c.stderr > 1e-12 * abs(c.mean) else math.nan) for c in columns]
    pair = torch.tensor(pairs, dtype=torch.float64).T.reshape(2, *cost.shape[1:])
    return pair[0], pair[1]
