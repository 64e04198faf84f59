"""Losses of score models: rewards from preferences, costs from rankings and from safety labels.

Letters: B pairs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from lit_safe.types import Pair, Scored

REWARD = "reward"
"""Name of the reward's output. The other outputs of a score model have the names of the data's constraints."""


def ranking_loss(higher: Tensor, lower: Tensor) -> Tensor:
    """-log sigma(higher - lower), in nats: the Bradley-Terry loss of scores [B] (Bradley and Terry 1952).

    Safe-RLHF uses it for rewards (higher: the more helpful response) and for costs (higher: the more harmful one), in
    section 3.2 of arXiv:2310.12773.
    """
    return softplus(lower - higher)


def sign_loss(cost: Tensor, unsafe: Tensor) -> Tensor:
    """-log sigma(s * cost) with s = 1 for an unsafe response and -1 for a safe one, in nats.

    The sign terms of Safe-RLHF's cost loss (section 3.2 of arXiv:2310.12773). They make 0 the border between safe
    and unsafe. This is binary cross-entropy with the cost as log-odds of being unsafe, so it is also the loss of
    pointwise labels.

    Args:
        cost: Costs, of any shape.
        unsafe: Labels of the same shape, bool.
    """
    return softplus(torch.where(unsafe, -cost, cost))


@dataclass(frozen=True)
class RewardLoss:
    """Bradley-Terry loss of rewards: the response with the larger labelled reward is to have the larger score.

    A pair whose labels are equal or unknown has weight 0.

    Args:
        magnitude: Weight of the scores' mean square, which keeps scores near 0. Safe-RLHF's code uses 0.001.

    Raises:
        ValueError: If ``magnitude`` is negative.
    """

    magnitude: float = 0.001

    def __post_init__(self) -> None:
        _check(magnitude=self.magnitude)

    def __call__(self, score: Pair, reward: Pair) -> Scored:
        """Loss and weight [B] of the scores [B] of both responses, given their labelled rewards [B] (NaN: unknown)."""
        ranked, order_B = _order(reward)
        loss_B = torch.where(ranked, ranking_loss(order_B * score.margin, torch.zeros_like(order_B)), 0)
        return Scored(loss_B + self.magnitude * _mean_square(score), ranked.to(loss_B))


@dataclass(frozen=True)
class CostLoss:
    """Safe-RLHF's loss of costs: the more harmful response has the larger cost, and costs > 0 are unsafe.

    ``ranking * -log sigma(c_more - c_less) + sign * sum over both responses of -log sigma(s * c)`` with s = 1 for
    unsafe and -1 for safe (section 3.2 of arXiv:2310.12773). ``ranking: 0`` leaves pointwise labels alone.
    A term whose label is unknown is left out. A pair without any term has weight 0.

    Args:
        ranking: Weight of the ranking term, >= 0.
        sign: Weight of the two sign terms, >= 0.
        magnitude: Weight of the scores' mean square, >= 0. Safe-RLHF's code uses 0.001.

    Raises:
        ValueError: If a weight is negative, or ``ranking`` and ``sign`` are both 0.
    """

    ranking: float = 1.0
    sign: float = 1.0
    magnitude: float = 0.001

    def __post_init__(self) -> None:
        _check(ranking=self.ranking, sign=self.sign, magnitude=self.magnitude)
        if self.ranking == self.sign == 0:
            raise ValueError("ranking and sign are both 0, so nothing would train: set one of them above 0")

    def __call__(self, score: Pair, cost: Pair, chosen_is_safer: bool = False) -> Scored:
        """Loss and weight [B] of the predicted costs [B], given the labelled costs [B] of one constraint.

        Args:
            score: Predicted costs of both responses.
            cost: Labelled costs, NaN where unknown. The larger one is the more harmful response.
            chosen_is_safer: Whether the order of the data decides pairs whose labelled costs are equal or unknown.
        """
        ranked, order_B = _order(cost)
        if chosen_is_safer:
            ranked, order_B = torch.ones_like(ranked), torch.where(ranked, order_B, -1)
        ranked = ranked & (self.ranking > 0)
        loss_B = torch.where(ranked, self.ranking * ranking_loss(order_B * score.margin, torch.zeros_like(order_B)), 0)
        used = ranked
        for score_B, cost_B in zip(score, cost, strict=True):
            known = ~cost_B.isnan() & (self.sign > 0)
            loss_B = loss_B + torch.where(known, self.sign * sign_loss(score_B, cost_B > 0), 0)
            used = used | known
        return Scored(loss_B + self.magnitude * _mean_square(score), used.to(loss_B))


def _order(label: Pair) -> tuple[Tensor, Tensor]:
    """Whether the labels [B] differ, and the order [B]: 1 if the chosen response has the larger one, else -1."""
    margin_B = torch.nan_to_num(label.margin)
    return margin_B != 0, torch.where(margin_B >= 0, 1.0, -1.0).to(margin_B)


def _mean_square(score: Pair) -> Tensor:
    return torch.stack(score).square().mean(0)


def _check(**weights: float) -> None:
    for name, value in weights.items():
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name} must be a number >= 0, got {value}")
