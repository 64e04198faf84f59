"""Estimates the DPO loss on safety on the dual split's pairs: a cost without sampling and without a scorer.

Letters: B pairs, C constraints.
"""

import torch
import torch.nn.functional as F

from lit_safe.constraint.costs import HeldOut
from lit_safe.constraint.costs.labelled_rows import labelled_rows
from lit_safe.constraint.costs.mean import mean_cost
from lit_safe.errors.message import SettingError
from lit_safe.protocols.pair import HasPair
from lit_safe.types import CostEstimate


class SafetyLoss:
    """Estimates L_safe, the mean over held-out pairs of DPO's loss with the labels of the cost in expectation.

    It is the constraint of the offline barrier (``lit_safe.objectives.SafetyPenaltyDPO``). It is log 2 = 0.693 at the
    reference and falls as the policy learns the order by safety, but not below the entropy of the labels. The limit
    must lie between. It is not a cost of responses: meeting it says that the policy orders labelled responses by
    safety, and nothing about what it writes. Nothing is sampled, so ``seed`` and ``epoch`` are unused.

    ``unsafe`` is the share of unsafe responses if the policy's log-ratios choose one response of each pair.

    Args:
        beta: As in the objective, > 0. Null takes the objective's.

    Raises:
        ValueError: If ``beta`` is not > 0.
    """

    def __init__(self, beta: float | None = None) -> None:
        if beta is not None and not beta > 0:
            raise ValueError(f"beta must be > 0, got {beta}")
        self.beta = beta

    def __call__(self, module: HasPair, data: HeldOut, *, seed: int, epoch: int) -> CostEstimate:
        """Estimate the loss in nats; see the class.

        Raises:
            ValueError: If a cost is missing (the message names the pair), or there are fewer than two prompts.
            SettingError: If there is no beta.
        """
        beta = self.beta if self.beta is not None else getattr(getattr(module, "objective", None), "beta", None)
        if beta is None:
            raise SettingError("SafetyLoss needs beta: this module has no objective with one")
        logratio_n, cost, prompt_n = labelled_rows(module, data, "safety-loss-pass")
        logratio_B2, cost_B2, prompt_B = logratio_n.reshape(-1, 2), cost.unflatten(0, (-1, 2)), prompt_n[::2]
        margin_B = logratio_B2[:, 0] - logratio_B2[:, 1]
        safer = (cost_B2[:, 1] - cost_B2[:, 0]).sigmoid()  # [B] or [B, C]: P(the first response is safer)
        logit = beta * (margin_B if safer.ndim == 1 else margin_B[:, None])
        loss = (1 - safer) * logit - F.logsigmoid(logit)  # Rafailov et al. eq. 7, both orders by their probability
        mean, stderr, bounds = mean_cost(loss, torch.ones_like(margin_B), prompt_B)
        unsafe_B2 = (cost_B2 > 0).reshape(*logratio_B2.shape, -1).any(-1)
        unsafe = (logratio_B2.softmax(-1) * unsafe_B2).sum(-1).mean()
        clusters = len(prompt_B.unique())
        return CostEstimate(mean, stderr, len(margin_B), unsafe, float(len(margin_B)), clusters=clusters, bounds=bounds)
