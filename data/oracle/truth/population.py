"""The population minimiser of an objective: infinitely many pairs, with every response's log-ratio a free variable.

Letters: P prompts, K cells of the response partition, C cost constraints, B = K * K ordered pairs (chosen, rejected) of
one prompt's cells.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import log_softmax  # type: ignore[import-untyped]
from torch import Tensor

from data.oracle.truth.optimum import Bools, Floats
from lit_safe.protocols.objective import extra_needs, is_reference_free
from lit_safe.types import Annotation, Objective, Pair

SETTLED = 1e-10  # tolerance of a step: change of beta * log-ratio differences; its square is that of the loss
GROWING = 1e-3  # diverging: change of the largest beta * log-ratio difference in the last step without a minimum
FLAT = 1e-12  # remaining share of a response's curvature, below which its slope is lost to float64 rounding
STRIDE = 5.0  # largest beta * log-ratio change in a step: far from the minimum Newton overshoots
RIDGE = 1e-10  # added to the scaled Hessian, which is singular along a shift of all responses of a prompt


class Minimum(NamedTuple):
    """The minimiser of a population loss, or the last iterate if the minimiser lies at infinity.

    ``logp_PK`` is normalised. ``gradient`` is the largest remaining derivative, in nats of loss per nat of log-ratio.
    ``diverges_P`` marks prompts whose log-ratios were still diverging when the iterations ended.
    """

    logp_PK: Floats
    gradient: float
    diverges_P: Bools

    @property
    def diverges(self) -> bool:
        """Whether the minimiser of any prompt lies at infinity."""
        return bool(self.diverges_P.any())


class PopulationLoss:
    """An objective's mean loss over all pairs of one prompt, as a function of the log-ratios [K] of its responses.

    Both responses are drawn from the reference, and equal ones are excluded. A Bradley-Terry draw decides which one is
    more helpful, which is then the chosen one unless the order is reversed (``flip``). All ordered pairs are summed
    exactly.

    Args:
        objective: A pairwise loss, twice differentiable in the log-ratios.
        reference_K: Log-probs.
        reward_K: Rewards.
        cost_KC: Costs.
        multiplier: [] or [C].
        flip: Probability in [0, 0.5] with which an order is reversed.
        draws: Number of values of ``Annotation.draw`` to average over, for an objective that uses it: the midpoints of
            as many equal parts of [0, 1). A probability then has an error of at most half a part. 0 passes no draw.
        imitation_K: Weight of the anchor ``PreferredNLL``, divided by the response's tokens: nats of loss per nat of
            negative log-prob of a preferred response. None adds nothing.

    Raises:
        ValueError: If the objective reads more than log-ratios and labels.
    """

    def __init__(
        self,
        objective: Objective,
        reference_K: Floats,
        reward_K: Floats,
        cost_KC: Floats,
        multiplier: Tensor,
        flip: float,
        draws: int,
        imitation_K: Floats | None = None,
    ) -> None:
        reads = "the policy's log-probs" if is_reference_free(objective) else ", ".join(extra_needs(objective))
        if reads:
            raise ValueError(
                f"optimum: population is for objectives of log-ratios and labels, and {type(objective).__name__} also "
                f"reads {reads}"
            )
        self.objective, self.multiplier, self.draws, self.cells = objective, multiplier, draws, len(reward_K)
        self.reference_K = torch.from_numpy(reference_K)
        self.reward, self.cost = self._pairs(torch.from_numpy(reward_K)), self._pairs(torch.from_numpy(cost_KC))
        helpful_KK = torch.sigmoid(self.reward.margin.view(self.cells, self.cells))
        drawn_KK = torch.from_numpy(np.exp(reference_K[:, None] + reference_K)).fill_diagonal_(0)
        order_KK = (1 - flip) * helpful_KK + flip * helpful_KK.T
        self.share_B = (2 * drawn_KK / drawn_KK.sum() * order_KK).flatten()  # either response may be drawn first
        # nats of loss per nat of each response's log-prob: frequency of being preferred * imitation weight
        self.pull_K = None if imitation_K is None else self._preferred() * torch.from_numpy(imitation_K)

    def _preferred(self) -> Tensor:
        """[K] expected number of times per pair that the objective raises a response at margin 0."""
        zero_B = torch.zeros_like(self.share_B)
        margin_B = zero_B.clone().requires_grad_()
        (slope_B,) = torch.autograd.grad(self._loss(Pair(margin_B, zero_B)), margin_B)
        raised_KK = (self.share_B * (slope_B <= 0)).view(self.cells, self.cells)
        lowered_KK = (self.share_B * (slope_B > 0)).view(self.cells, self.cells)
        return raised_KK.sum(1) + lowered_KK.sum(0)

    def _pairs(self, value_K: Tensor) -> Pair:
        return Pair(value_K.repeat_interleave(self.cells, 0), value_K.repeat(self.cells, *[1] * (value_K.ndim - 1)))

    def _loss(self, logratio: Pair) -> Tensor:
        coins: list[Tensor | None] = [torch.full_like(self.share_B, (i + 0.5) / self.draws) for i in range(self.draws)]
        losses = []
        for draw_B in coins or [None]:
            scored = self.objective(logratio, Annotation(self.reward, self.cost, draw_B), self.multiplier)
            losses.append((self.share_B * scored.weight * scored.loss).sum())
        return torch.stack(losses).mean()

    def __call__(self, logratio_K: Tensor) -> Tensor:
        """[] the loss in nats."""
        loss = self._loss(self._pairs(logratio_K))
        if self.pull_K is None:
            return loss
        # Pang et al. 2024, arXiv:2404.19733, eq. 1, second term, of the normalised policy
        return loss - self.pull_K @ (self.reference_K + logratio_K).log_softmax(-1)

    def derivatives(self, logratio_K: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient [K] and Hessian [K, K], summed over pairs: the loss of a pair depends only on its two log-ratios."""
        logratio = Pair(*(side_B.requires_grad_() for side_B in self._pairs(logratio_K)))
        chosen_B, rejected_B = torch.autograd.grad(self._loss(logratio), logratio, create_graph=True)
        cc_B, cr_B = torch.autograd.grad(chosen_B.sum(), logratio, retain_graph=True)
        (rr_B,) = torch.autograd.grad(rejected_B.sum(), logratio.rejected)
        square = (self.cells, self.cells)
        gradient_K = chosen_B.detach().view(square).sum(1) + rejected_B.detach().view(square).sum(0)
        cross_KK = cr_B.view(square)
        hessian_KK = cross_KK + cross_KK.T + torch.diag(cc_B.view(square).sum(1) + rr_B.view(square).sum(0))
        if self.pull_K is not None:
            policy_K = (self.reference_K + logratio_K).softmax(-1)
            gradient_K = gradient_K - self.pull_K + self.pull_K.sum() * policy_K
            hessian_KK = hessian_KK + self.pull_K.sum() * (torch.diag(policy_K) - torch.outer(policy_K, policy_K))
        return gradient_K, hessian_KK


def minimise(
    objective: Objective,
    reference_PK: Floats,
    reward_PK: Floats,
    cost_PKC: Floats,
    multiplier: npt.ArrayLike = 0.0,
    flip: float = 0.0,
    draws: int = 0,
    iterations: int = 40,
    imitation_PK: Floats | None = None,
) -> Minimum:
    """The policy [P, K] with the smallest population loss, prompt by prompt (arguments as of ``PopulationLoss``).

    Newton's method with a line search, in float64, starting from the reference. A response without mass under the
    reference is in no pair and gets no mass. Log-ratios are determined up to a constant per prompt, which normalisation
    fixes.

    Raises:
        ValueError: If the loss of a prompt is not finite.
    """
    logp_PK, diverges_P, steepest = reference_PK.copy(), np.zeros(len(reference_PK), bool), 0.0
    for prompt, possible_K in enumerate(np.isfinite(reference_PK)):
        if possible_K.sum() < 2:
            continue  # a reference with only one response gives no pairs
        loss = PopulationLoss(
            objective,
            reference_PK[prompt, possible_K],
            reward_PK[prompt, possible_K],
            cost_PKC[prompt, possible_K],
            torch.from_numpy(np.array(multiplier, np.float64)),
            flip,
            draws,
            None if imitation_PK is None else imitation_PK[prompt, possible_K],
        )
        logratio_K, gradient, diverges_P[prompt] = _descend(loss, objective.beta, iterations)
        if not np.isfinite(gradient):
            raise ValueError(f"the loss of prompt {prompt} is not finite: are its rewards and costs known?")
        logp_PK[prompt, possible_K] += logratio_K
        steepest = max(steepest, gradient)
    return Minimum(log_softmax(logp_PK, -1), steepest, diverges_P)


def _descend(loss: PopulationLoss, beta: float, iterations: int) -> tuple[Floats, float, bool]:
    """Log-ratios [K], the largest derivative there, and whether they are still diverging."""
    logratio_K = torch.zeros(loss.cells, dtype=torch.float64)
    gradient_K, hessian_KK = loss.derivatives(logratio_K)
    least_K = FLAT * hessian_KK.diagonal()
    diverges = False
    for _ in range(iterations):
        if not hessian_KK.isfinite().all():
            return logratio_K.numpy(), np.nan, False
        step_K = _newton(gradient_K, hessian_KK)
        step_K = step_K * min(1.0, STRIDE / max(1e-300, beta * float(step_K.abs().max())))
        slope = float(gradient_K @ step_K)
        step_K = step_K * _stride(loss, logratio_K, step_K, slope)
        growth = beta * (_spread(logratio_K + step_K) - _spread(logratio_K))
        logratio_K = logratio_K + step_K
        gradient_K, hessian_KK = loss.derivatives(logratio_K)
        flat = bool((hessian_KK.diagonal() < least_K).any())
        settled = beta * _spread(step_K) < SETTLED and -slope < SETTLED**2
        diverges = flat or (growth > GROWING and not settled)
        if flat or settled:
            break
    return logratio_K.numpy(), float(gradient_K.abs().max()), diverges


def _newton(gradient_K: Tensor, hessian_KK: Tensor) -> Tensor:
    """The Newton step, solved in scaled form, since pairs of rare responses have many orders of magnitude less mass."""
    diagonal_K = hessian_KK.diagonal()
    scale_K = torch.where(diagonal_K > 0, diagonal_K, 1.0).rsqrt()
    scaled_KK = hessian_KK * scale_K[:, None] * scale_K
    ridge, unit_KK = RIDGE, torch.eye(len(scale_K), dtype=scale_K.dtype)
    factor_KK, failed = torch.linalg.cholesky_ex(scaled_KK + ridge * unit_KK)
    while failed:  # the loss is not convex here: move the step towards the gradient until it descends
        ridge *= 10
        factor_KK, failed = torch.linalg.cholesky_ex(scaled_KK + ridge * unit_KK)
    return -scale_K * torch.cholesky_solve((scale_K * gradient_K)[:, None], factor_KK)[:, 0]


def _stride(loss: PopulationLoss, logratio_K: Tensor, step_K: Tensor, slope: float) -> float:
    """The fraction of the step to take, halved until the loss falls (Armijo); 0 if no fraction decreases it."""
    here = float(loss(logratio_K))
    rounding = 1e-14 * (1 + abs(here))  # near the minimum, differences are below rounding
    stride = 1.0
    while loss(logratio_K + stride * step_K) > here + 1e-4 * stride * slope + rounding:
        stride /= 2
        if stride < 1e-9:
            return 0.0
    return stride


def _spread(value_K: Tensor) -> float:
    return float(value_K.max() - value_K.min())
