"""Parts that several objectives share: links, means per token, and checks of arguments.

Letters: B pairs.
"""

import math
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor

from lit_safe.objectives.bradley_terry import nll
from lit_safe.types import Pair

Link = Literal["logistic", "square", "hinge"]
"""From a logit z to a loss: -log sigmoid(z) as in DPO, (z - 1/2)^2 / beta^2 as in IPO, or max(0, 1 - z) as in SLiC."""


def linked(link: Link, logit_B: Tensor, beta: float) -> Tensor:
    """[B] the loss of a pair whose chosen response is preferred, by its logit (beta * log-ratio margin, less a margin).

    The scale 1 / beta^2 of the square is that of IPO, (margin - 1 / (2 beta))^2.
    """
    if link == "logistic":
        return nll(logit_B)
    return ((logit_B - 0.5) / beta).square() if link == "square" else F.relu(1 - logit_B)


def per_token(value: Pair, length: Pair) -> Pair:
    """Each response's sum of log-probs or log-ratios divided by its number of tokens. An empty response counts one."""
    return Pair(*(side_B / length_B.clamp(min=1) for side_B, length_B in zip(value, length, strict=True)))


def check_positive(**values: float) -> None:
    """Check that arguments are finite and > 0.

    Raises:
        ValueError: If one is not. The message names it.
    """
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be > 0, got {value}")


def check_link(link: str) -> None:
    """Check the name of a link.

    Raises:
        ValueError: If it is unknown.
    """
    if link not in get_args(Link):
        raise ValueError(f"link must be one of {get_args(Link)}, got {link!r}")
