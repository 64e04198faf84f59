"""The margin below the limit with which a certificate shows the limit: its power, its ends, and what runs say of it."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from lit_safe.constraint.dual_ascent import DualAscent
from lit_safe.constraint.safety_margin import CertifiedWith, SafetyMargin, certifiable_margin
from lit_safe.types import CostEstimate
from tests.lit_safe.constraint.test_dual import curve, module, trainer
from tests.lit_safe.dual_world import COST, ExactCost, Toy, optimal_cost, solve


def f64(value: float | list[float]) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize(("n", "level", "power"), [(20, 0.95, 0.8), (400, 0.95, 0.8), (100, 0.99, 0.95)])
def test_a_policy_at_the_margin_is_certified_with_the_stated_power(n: int, level: float, power: float) -> None:
    """20,000 certificates by Student's t on normal costs of spread 2."""
    margin = float(certifiable_margin(f64(2.0), CertifiedWith(n, level, power)))
    cost_DN = np.random.default_rng(0).normal(-margin, 2.0, (20_000, n))
    reach = stats.t.ppf(level, n - 1) * cost_DN.std(1, ddof=1) / n**0.5
    certified = float((cost_DN.mean(1) + reach <= 0).mean())
    assert certified == pytest.approx(power, abs=4 * (power * (1 - power) / 20_000) ** 0.5)


def test_with_many_prompts_it_is_the_sum_of_two_normal_quantiles() -> None:
    margin = float(certifiable_margin(f64(3.0), CertifiedWith(100_000, 0.95, 0.8)))
    assert margin == pytest.approx((1.6449 + 0.8416) * 3 / 100_000**0.5, rel=1e-3)


def test_it_scales_with_the_spread_and_is_zero_without_one() -> None:
    one, five, none = certifiable_margin(f64([1.0, 5.0, 0.0]), CertifiedWith()).tolist()
    assert five == pytest.approx(5 * one)
    assert none == 0
    assert certifiable_margin(f64(1.0), CertifiedWith(n=1600)) < one / 1.9


def test_a_spread_that_is_not_given_follows_from_the_error_and_one_that_is_not_known_gives_no_margin() -> None:
    """stderr 0.1 of 25 prompts: a spread of 0.5."""
    auto = SafetyMargin("auto", CertifiedWith())
    known = CostEstimate(f64(0.0), f64(0.1), 50, f64(0.5), 50.0, clusters=25)
    assert auto.of(known) == certifiable_margin(f64(0.5), CertifiedWith())
    assert auto.of(known._replace(spread=f64(0.7))) == certifiable_margin(f64(0.7), CertifiedWith())
    assert auto.of(known._replace(stderr=f64(math.nan))) == 0


@pytest.mark.parametrize(("n", "level", "power"), [(1, 0.95, 0.8), (9, 1.0, 0.8), (9, 0.95, 0.5)])
def test_a_certificate_that_makes_no_sense_is_refused(n: int, level: float, power: float) -> None:
    with pytest.raises(ValueError, match="margin_for"):
        CertifiedWith(n, level, power)


@pytest.mark.parametrize("margin", [-0.1, math.nan, [0.0, math.inf]])
def test_a_margin_that_is_negative_or_not_finite_is_refused(margin: float) -> None:
    with pytest.raises(ValueError, match="margin must be auto, or >= 0"):
        DualAscent(margin=margin)


def test_the_multiplier_settles_at_the_limit_less_the_margin_and_reports_speak_of_the_limit(tmp_path: Path) -> None:
    limit, margin = 0.0, 0.3
    dual = DualAscent(limit=limit, margin=margin, lr=1.0, estimator=ExactCost())
    model = module(solve(limit - margin))
    trainer(tmp_path, dual, max_epochs=6).fit(model, datamodule=Toy(40))
    assert model.multiplier.item() == pytest.approx(solve(limit - margin), abs=0.05)
    assert model.multiplier.item() > solve(limit) + 0.1
    assert curve(tmp_path, "dual/violation")[-1][1] == pytest.approx(-margin, abs=0.05)
    assert {value for _, value in curve(tmp_path, "dual/margin")} == {margin}
    assert dual.standing is not None
    assert dual.standing.limit == (limit,)
    assert dual.standing.verdicts == ("met",)
    assert optimal_cost(solve(limit - margin)) == pytest.approx(limit - margin, abs=1e-6)


def test_each_constraint_has_its_own_margin(tmp_path: Path) -> None:
    costs = torch.stack((COST, COST), dim=-1)
    dual = DualAscent(limit=-0.3, margin=[0.0, 0.2], lr=0.5, estimator=ExactCost((COST, COST)))
    model = module([0.5, 0.5])
    trainer(tmp_path, dual, max_epochs=1).fit(model, datamodule=Toy(2, costs, ("harm", "dullness")))
    assert float(model.multiplier[1] - model.multiplier[0]) == pytest.approx(0.5 * 0.2, abs=1e-6)
