"""SACPO's second stage: by hand, its limits, and the optimum of two stages in a small world in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lit_safe.objectives import DPO, SACPO, ConstrainedDPO
from lit_safe.types import Annotation, Objective, Pair

NAN = Pair(torch.tensor([math.nan], dtype=torch.float64), torch.tensor([math.nan], dtype=torch.float64))
UNKNOWN = Annotation(NAN, NAN)


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def pair(margin: float) -> Pair:
    return Pair(torch.tensor([margin], dtype=torch.float64), torch.zeros(1, dtype=torch.float64))


def test_by_hand() -> None:
    """beta / lambda = 0.1 / 4 = 0.025; -log sigmoid(0.025 * 8) = 0.598139; times 4."""
    found = SACPO(beta=0.1)(pair(8.0), UNKNOWN, number(4.0))
    assert found.loss.item() == pytest.approx(4 * 0.5981388693815918)
    assert found.weight.tolist() == [1.0]


@given(st.floats(-50, 50), st.floats(0.01, 100), st.floats(0.01, 2))
def test_it_is_dpo_with_beta_over_lambda_times_lambda(margin: float, multiplier: float, beta: float) -> None:
    ours = SACPO(beta=beta)(pair(margin), UNKNOWN, number(multiplier)).loss
    dpo = DPO(beta=beta / multiplier)(pair(margin), UNKNOWN, number(0.0)).loss
    torch.testing.assert_close(ours, multiplier * dpo)


@given(st.floats(-30, 30), st.floats(-3, 3), st.floats(0, 10))
def test_with_soft_labels_the_order_in_the_data_does_not_matter(margin: float, cost: float, multiplier: float) -> None:
    objective = SACPO(labels="soft")
    one = objective(pair(margin), Annotation(NAN, pair(cost)), number(multiplier)).loss
    other = objective(pair(-margin), Annotation(NAN, pair(-cost)), number(multiplier)).loss
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("multiplier", [0.0, 1e-9, 1e-3, 1.0, 1e4])
def test_its_gradient_is_bounded_by_beta_at_every_multiplier(multiplier: float) -> None:
    margin_B = torch.linspace(-100, 100, 41, dtype=torch.float64).requires_grad_()
    loss_B = SACPO(beta=0.1)(Pair(margin_B, torch.zeros_like(margin_B)), UNKNOWN, number(multiplier)).loss
    (slope_B,) = torch.autograd.grad(loss_B.sum(), margin_B)
    assert slope_B.isfinite().all()
    assert slope_B.abs().max() <= 0.1
    assert slope_B[20].item() == pytest.approx(-0.05)  # at the reference it does not depend on the multiplier


def test_in_float32_at_a_multiplier_of_0_it_is_finite_and_least_at_the_reference() -> None:
    margin_B = torch.tensor([-300.0, -1.0, 0.0, 1.0, 300.0])
    cost = Pair(torch.full((5,), 0.5), torch.zeros(5))
    loss_B = SACPO(labels="soft")(Pair(margin_B, torch.zeros(5)), Annotation(cost, cost), torch.tensor(0.0)).loss
    assert loss_B.isfinite().all()
    assert loss_B.argmin() == 2


def test_gradients_agree_with_differences_in_float64() -> None:
    margin_B = torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64, requires_grad=True)
    cost_B = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    label = Annotation(Pair(cost_B, -cost_B), Pair(cost_B, -cost_B))

    def loss(margin_B: Tensor) -> Tensor:
        return SACPO(labels="soft")(Pair(margin_B, torch.zeros_like(margin_B)), label, number(0.3)).loss

    assert torch.autograd.gradcheck(loss, margin_B)


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="use ConstrainedDPO for several"):
        SACPO()(pair(0.0), UNKNOWN, torch.ones(2))
    with pytest.raises(ValueError, match="beta must be > 0"):
        SACPO(beta=0.0)
    with pytest.raises(ValueError, match="labels must be one of"):
        SACPO(labels="hard")  # type: ignore[arg-type]  # the mistake
    assert SACPO().needs == ()
    assert SACPO(labels="soft").needs == ("cost",)


# -- two stages in a world of six responses, all pairs equally frequent, with labels in expectation

REFERENCE = torch.tensor([0.3, 0.1, 0.05, 0.25, 0.2, 0.1], dtype=torch.float64).log()
REWARD = torch.tensor([0.0, 1.2, 0.4, -0.7, 2.0, 0.9], dtype=torch.float64)
COST = torch.tensor([-1.0, 0.8, -0.3, -0.5, 1.5, 0.1], dtype=torch.float64)
ONE, OTHER = torch.triu_indices(6, 6, 1)


def normalised(logit_Y: Tensor) -> Tensor:
    return logit_Y - logit_Y.logsumexp(0)


def minimised(objective: Objective, reference_Y: Tensor, multiplier: float) -> Tensor:
    """[Y] log-probs of the policy that minimises the loss over all pairs, by L-BFGS from the reference."""
    logit_Y = reference_Y.clone().requires_grad_()
    label = Annotation(Pair(REWARD[ONE], REWARD[OTHER]), Pair(COST[ONE], COST[OTHER]))
    steps = torch.optim.LBFGS(
        [logit_Y], max_iter=2000, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        steps.zero_grad()
        ratio_Y = normalised(logit_Y) - reference_Y
        total: Tensor = objective(Pair(ratio_Y[ONE], ratio_Y[OTHER]), label, number(multiplier)).loss.sum()
        total.backward()
        return total

    steps.step(loss)
    return normalised(logit_Y.detach())


@pytest.mark.parametrize("multiplier", [0.25, 1.0, 3.0])
def test_two_stages_give_the_reward_then_the_safety_of_theorem_1(multiplier: float) -> None:
    beta = 0.7
    first_Y = minimised(ConstrainedDPO(beta=beta), REFERENCE, 0.0)  # DPO with the reward's labels in expectation
    torch.testing.assert_close(first_Y, normalised(REFERENCE + REWARD / beta), rtol=0, atol=1e-7)
    second_Y = minimised(SACPO(beta=beta, labels="soft"), first_Y, multiplier)
    torch.testing.assert_close(second_Y, normalised(first_Y - multiplier * COST / beta), rtol=0, atol=1e-6)
    at_once_Y = minimised(ConstrainedDPO(beta=beta), REFERENCE, multiplier)
    torch.testing.assert_close(second_Y, at_once_Y, rtol=0, atol=1e-6)


def test_without_a_multiplier_the_second_stage_stays_where_it_is() -> None:
    first_Y = normalised(REFERENCE + REWARD)
    label = Annotation(Pair(REWARD[ONE], REWARD[OTHER]), Pair(COST[ONE], COST[OTHER]))

    def loss(policy_Y: Tensor) -> float:
        ratio_Y = policy_Y - first_Y
        pair_B = Pair(ratio_Y[ONE], ratio_Y[OTHER])
        return float(SACPO(labels="soft")(pair_B, label, number(0.0)).loss.sum())

    draws = torch.Generator().manual_seed(0)
    for _ in range(50):
        moved_Y = first_Y + 0.1 * torch.randn(6, generator=draws, dtype=torch.float64)
        assert loss(normalised(moved_Y)) > loss(first_Y) + 1e-4


def test_a_dual_step_on_the_exact_cost_ends_at_the_multiplier_of_the_limit() -> None:
    """PD-DPO with exact inner optima: the policy of each multiplier, its cost, a subgradient step."""
    beta, limit, multiplier = 0.7, -0.5, 0.0
    first_Y = normalised(REFERENCE + REWARD / beta)
    for _ in range(20):
        policy_Y = minimised(SACPO(beta=beta, labels="soft"), first_Y, multiplier) if multiplier else first_Y
        cost = (policy_Y.exp() @ COST).item()
        multiplier = max(0.0, multiplier + 1.0 * (cost - limit))
    assert multiplier > 0.1
    assert cost == pytest.approx(limit, abs=1e-3)
    exact_Y = normalised(REFERENCE + (REWARD - multiplier * COST) / beta)
    torch.testing.assert_close(policy_Y, exact_Y, rtol=0, atol=1e-3)
