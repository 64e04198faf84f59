"""The offline barrier: the loss on safety as a cost, by hand and solved, and what its multiplier targets."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_safe.constraint.controllers.log_barrier import LogBarrier
from lit_safe.constraint.costs.safety_loss import SafetyLoss
from lit_safe.objectives import DPO, SafetyPenaltyDPO
from lit_safe.types import Annotation, CostEstimate, Pair
from tests.lit_safe.dual_world import BETA, COST, K, P, Table, Toy, optimum

ONE, OTHER = torch.triu_indices(K, K, 1)


def estimate(logit: Any = None, cost: Any = COST, beta: float | None = BETA) -> CostEstimate:
    pair = Table()
    if logit is not None:
        pair.logit_PK.data.copy_(logit)
    return SafetyLoss(beta)(SimpleNamespace(pair=pair), Toy(costs_PKC=cost), seed=0, epoch=0)


def test_at_the_reference_it_is_log_2_and_falls_as_the_policy_learns_safety() -> None:
    assert estimate().mean.item() == pytest.approx(math.log(2))
    safer = estimate(optimum(3.0).float())
    assert safer.mean < math.log(2)
    assert safer.unsafe < estimate().unsafe
    assert safer.clusters == P
    assert 0 < safer.stderr < 0.1


def test_it_is_the_mean_over_pairs_in_float64() -> None:
    logit_PK = optimum(1.5).float()
    ratio_PK = logit_PK.double().log_softmax(-1) - Table().reference_PK.double().log_softmax(-1)
    z = BETA * (ratio_PK[:, ONE] - ratio_PK[:, OTHER])
    p = (COST[:, OTHER] - COST[:, ONE]).double().sigmoid()
    exact = -(p * F.logsigmoid(z) + (1 - p) * F.logsigmoid(-z)).mean()
    assert estimate(logit_PK).mean.item() == pytest.approx(exact.item(), abs=1e-6)


def test_each_constraint_has_its_own_loss() -> None:
    both = estimate(optimum(2.0).float(), torch.stack([COST, -COST], -1))
    alone = estimate(optimum(2.0).float())
    assert both.mean.shape == (2,)
    assert both.mean[0].item() == pytest.approx(alone.mean.item())
    assert both.mean[1] > math.log(2) > both.mean[0]


def test_beta_is_the_objectives_unless_it_is_given() -> None:
    module = SimpleNamespace(pair=Table(), objective=DPO(beta=0.25))
    module.pair.logit_PK.data.copy_(optimum(2.0).float())
    found = SafetyLoss()(module, Toy(costs_PKC=COST), seed=0, epoch=0)
    assert found.mean.item() == pytest.approx(estimate(optimum(2.0).float(), beta=0.25).mean.item())
    with pytest.raises(ValueError, match="SafetyLoss needs beta"):
        estimate(beta=None)
    with pytest.raises(ValueError, match="beta must be > 0"):
        SafetyLoss(0.0)


def label() -> Annotation:
    reward = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([0.0, 2.0], dtype=torch.float64)
    cost = torch.tensor([1.0, -1.0], dtype=torch.float64), torch.tensor([-1.0, -0.5], dtype=torch.float64)
    return Annotation(Pair(*reward), Pair(*cost))


def losses(margin_B: Tensor) -> tuple[Tensor, Tensor]:
    """L_help and L_safe of the two pairs."""
    ratio, zero = Pair(margin_B, torch.zeros_like(margin_B)), torch.tensor(0.0, dtype=torch.float64)
    help_B = SafetyPenaltyDPO(beta=1.0)(ratio, label(), zero).loss
    return help_B.mean(), (SafetyPenaltyDPO(beta=1.0)(ratio, label(), zero + 1).loss - help_B).mean()


def test_the_loss_by_hand() -> None:
    """Pair 1: sigma(1) helpful, sigma(-2) safe; margin 2; multiplier 3."""
    ratio = Pair(torch.tensor([2.0, 0.0], dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    found = SafetyPenaltyDPO(beta=0.5)(ratio, label(), torch.tensor(3.0, dtype=torch.float64)).loss
    low, high = math.log1p(math.exp(-1)), math.log1p(math.e)  # -log sigma(1), -log sigma(-1)
    p, q = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(2))
    assert found[0].item() == pytest.approx(p * low + (1 - p) * high + 3 * (q * low + (1 - q) * high))
    assert found[1].item() == pytest.approx(4 * math.log(2))


def test_at_the_controllers_multiplier_its_gradient_is_that_of_the_barrier() -> None:
    eta, limit = 0.2, 0.9
    margin_B = torch.tensor([0.3, -0.4], dtype=torch.float64, requires_grad=True)
    first, safe = losses(margin_B)
    (barrier_B,) = torch.autograd.grad(first - eta * torch.log(limit - safe), margin_B)
    known = CostEstimate(safe.detach(), torch.tensor(0.0), 2, torch.tensor(0.0), 2.0)
    rule = LogBarrier(eta=eta, confidence=0.0, rate=1.0)
    multiplier = rule.step(torch.tensor(1.0, dtype=torch.float64), known, torch.tensor(limit), 0, None)
    ratio = Pair(margin_B, torch.zeros(2, dtype=torch.float64))
    loss = SafetyPenaltyDPO(beta=1.0)(ratio, label(), multiplier).loss.mean()
    (ours_B,) = torch.autograd.grad(loss, margin_B)
    torch.testing.assert_close(ours_B, barrier_B, rtol=1e-6, atol=1e-9)


def test_each_pair_is_least_where_the_labels_mix_and_gradients_agree_with_differences() -> None:
    multiplier = torch.tensor(3.0, dtype=torch.float64)
    p_B = (label().reward.margin.sigmoid() + 3 * (-label().cost.margin).sigmoid()) / 4
    best_B = (p_B.logit() / 0.5).requires_grad_()

    def loss(margin_B: Tensor) -> Tensor:
        return SafetyPenaltyDPO(beta=0.5)(Pair(margin_B, torch.zeros_like(margin_B)), label(), multiplier).loss

    (slope_B,) = torch.autograd.grad(loss(best_B).sum(), best_B)
    assert slope_B.abs().max() < 1e-12
    assert torch.autograd.gradcheck(loss, best_B)


def test_several_constraints_each_have_a_multiplier() -> None:
    both = Annotation(label().reward, Pair(*(torch.stack([side, 2 * side], -1) for side in label().cost)))
    ratio = Pair(torch.tensor([0.7, -1.0], dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    objective = SafetyPenaltyDPO()
    alone = objective(ratio, label(), torch.tensor(0.4, dtype=torch.float64)).loss
    found = objective(ratio, both, torch.tensor([0.4, 0.0], dtype=torch.float64)).loss
    torch.testing.assert_close(found, alone)
