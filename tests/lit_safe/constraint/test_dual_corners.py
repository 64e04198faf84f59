"""Several constraints, rectified costs, an automatic margin, and a scorer that fails on one response."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_safe.constraint.costs.rollout import RolloutCost
from lit_safe.constraint.dual_ascent import DualAscent
from lit_safe.constraint.safety_margin import CertifiedWith, student_margin
from lit_safe.errors.message import SettingError
from lit_safe.objectives import ConstrainedDPO
from lit_safe.rollouts.rectified import Rectified
from lit_safe.training.module import PreferenceAlignment
from tests.lit_safe.constraint.test_dual import curve, trainer
from tests.lit_safe.dual_world import BETA, COST, Table, TableCost, Toy

NAMES = ("harm", "dullness")
BOTH = torch.stack([COST, -0.5 * COST], dim=-1)


class TwoCosts:
    """The table's cost, and half of its negative."""

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        cost = TableCost()(list(prompts), list(responses))
        return torch.stack([cost, -0.5 * cost], dim=-1)


class BrokenOnce(TwoCosts):
    """The second cost of response 3 to prompt 2 is NaN. The check before training sees another one."""

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        costs = super().__call__(prompts, responses)
        wrong = [prompt == "prompt 2" and text == "response 3" for prompt, text in zip(prompts, responses, strict=True)]
        costs[torch.tensor(wrong), 1] = math.nan
        return costs


def module(rectify: bool = True) -> PreferenceAlignment:
    return PreferenceAlignment(
        Table(),
        ConstrainedDPO(beta=BETA, rectify=rectify),
        lambda parameters: torch.optim.Adam(parameters, lr=0.05),
        multiplier=[0.0, 0.0],
        gradient_clip_norm=None,
        precompute_reference=False,
    )


def dual(cost: Any, **options: Any) -> DualAscent:
    estimator = RolloutCost(Rectified(cost), samples_per_prompt=32, batch_size=256)
    return DualAscent([0.05, 0.2], lr=0.5, margin="auto", estimator=estimator, **options)


def test_each_rectified_constraint_has_the_margin_of_its_own_spread(tmp_path: Path) -> None:
    step, model = dual(TwoCosts()), module()
    trainer(tmp_path, step, max_epochs=2).fit(model, datamodule=Toy(4, BOTH, NAMES))
    margins = torch.tensor([[value for _, value in curve(tmp_path, f"dual/margin_{name}")] for name in NAMES])
    costs = torch.tensor([[value for _, value in curve(tmp_path, f"dual/cost_{name}")] for name in NAMES])
    assert bool((costs > 0).all()), "no cost is below 0"
    assert bool((margins > 0).all())
    assert step.estimator is not None
    estimate = step.estimator(model, Toy(4, BOTH, NAMES), seed=0, epoch=0)
    assert estimate.spread is not None
    expected = student_margin(estimate.spread, CertifiedWith())
    assert step.margin.of(estimate, step.limit).tolist() == pytest.approx(expected.tolist())
    assert expected[0] > 1.2 * expected[1], "the costs have different spreads"
    moved = torch.tensor([[value for _, value in curve(tmp_path, f"dual/multiplier_{name}")] for name in NAMES])
    steps = 0.5 * (costs - torch.tensor([[0.05], [0.2]]) + margins)
    assert torch.allclose(moved[:, 1:], (moved[:, :-1] + steps).clamp(min=0), atol=1e-5)


def test_one_cost_that_is_nan_ends_the_run_and_names_the_prompt_and_both_costs(tmp_path: Path) -> None:
    model = module()
    with pytest.raises(ValueError, match=r"function Rectified gave \[0\.0, nan\] for a response to prompt 102"):
        trainer(tmp_path, dual(BrokenOnce()), max_epochs=2).fit(model, datamodule=Toy(4, BOTH, NAMES))
    assert model.multiplier.tolist() == [0, 0], "no step was taken with it"


def test_a_limit_of_a_rectified_cost_that_its_margin_cannot_reach_is_named(tmp_path: Path) -> None:
    planned = CertifiedWith(n=10, cost_range=[0.0, 1.5])
    with pytest.raises(SettingError, match=r"margin_for\.n 10 is too small: .* the limit of harm"):
        trainer(tmp_path, dual(TwoCosts(), margin_for=planned)).fit(module(), datamodule=Toy(4, BOTH, NAMES))


def test_a_limit_below_the_declared_range_of_a_rectified_cost_is_named(tmp_path: Path) -> None:
    class Declared(TwoCosts):
        range = (-1.5, 1.5)

    step = dual(Declared())
    step.limit = torch.tensor([-0.1, 0.2], dtype=torch.float64)
    with pytest.raises(SettingError, match=r"the limit \[-0\.1, 0\.2\] is below the range \[0, 1\.5\] of the costs of"):
        trainer(tmp_path, step).fit(module(), datamodule=Toy(4, BOTH, NAMES))


def test_a_cost_outside_its_declared_range_ends_the_run_too(tmp_path: Path) -> None:
    class Left(TwoCosts):
        range = (-2.0, 0.1)

    said = r"the cost function Rectified gave \[[^]]*\] for a response .*, outside the range \[0, 0\.1\]"
    with pytest.raises(ValueError, match=said):
        trainer(tmp_path, dual(Left())).fit(module(), datamodule=Toy(4, BOTH, NAMES))
