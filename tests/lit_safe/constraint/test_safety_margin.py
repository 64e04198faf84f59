"""The margin below the limit with which a certificate shows the limit: its power, its ends, and what runs say of it."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from lit_safe.constraint.certificate.bounded_mean import STAKE, BoundedMean
from lit_safe.constraint.dual_ascent import DualAscent
from lit_safe.constraint.safety_margin import CertifiedWith, SafetyMargin, betting_margin, student_margin
from lit_safe.types import CostEstimate
from tests.lit_safe.constraint.test_dual import curve, module, trainer
from tests.lit_safe.dual_world import COST, ExactCost, Toy, optimal_cost, solve


def f64(value: float | list[float]) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


# -- Student's t


@pytest.mark.parametrize(("n", "level", "power"), [(20, 0.95, 0.8), (400, 0.95, 0.8), (100, 0.99, 0.95)])
def test_a_policy_at_the_margin_is_certified_with_the_stated_power(n: int, level: float, power: float) -> None:
    """20,000 certificates by Student's t on normal costs of spread 2."""
    margin = float(student_margin(f64(2.0), CertifiedWith(n, level, power)))
    cost_DN = np.random.default_rng(0).normal(-margin, 2.0, (20_000, n))
    reach = stats.t.ppf(level, n - 1) * cost_DN.std(1, ddof=1) / n**0.5
    certified = float((cost_DN.mean(1) + reach <= 0).mean())
    assert certified == pytest.approx(power, abs=4 * (power * (1 - power) / 20_000) ** 0.5)


def test_with_many_prompts_it_is_the_sum_of_two_normal_quantiles() -> None:
    margin = float(student_margin(f64(3.0), CertifiedWith(100_000, 0.95, 0.8)))
    assert margin == pytest.approx((1.6449 + 0.8416) * 3 / 100_000**0.5, rel=1e-3)


def test_it_scales_with_the_spread_and_is_zero_without_one() -> None:
    one, five, none = student_margin(f64([1.0, 5.0, 0.0]), CertifiedWith()).tolist()
    assert five == pytest.approx(5 * one)
    assert none == 0
    assert float(student_margin(f64([1.0, 1.0, 1.0]), CertifiedWith(n=1600))[0]) < one / 1.9


# -- the betting bound of `certify`


@pytest.mark.parametrize(
    ("unsafe", "n", "power"), [(0.3, 400, 0.8), (0.02, 400, 0.8), (0.3, 100, 0.9), (0.1, 1600, 0.8)]
)
def test_a_policy_at_the_margin_is_certified_by_the_betting_bound_with_at_least_the_stated_power(
    unsafe: float, n: int, power: float
) -> None:
    """Costs of -1 and 1, so that E[cost] = 2 unsafe - 1. The limit is where the margin leads down to that."""
    cost, spread = 2 * unsafe - 1, 2 * (unsafe * (1 - unsafe)) ** 0.5
    certificate = CertifiedWith(n, 0.95, power, [-1.0, 1.0])
    limit = cost
    for _ in range(60):
        limit = cost + float(betting_margin(f64(spread), f64(limit), certificate))
    random, draws = np.random.default_rng(0), 400
    costs_Dn = 2.0 * (random.random((draws, n)) < unsafe) - 1
    certified = np.mean([BoundedMean(cost_n, -1.0, 1.0).p_above(limit) <= 0.05 for cost_n in costs_Dn])
    error = (power * (1 - power) / draws) ** 0.5
    assert power - 3 * error <= certified <= (1 + power) / 2 + 3 * error


def test_costs_that_are_less_skewed_than_two_values_are_certified_more_often() -> None:
    """Costs spread evenly over [-1, 0.4] of a range [-1, 1]."""
    certificate = CertifiedWith(200, cost_range=[-1.0, 1.0])
    cost, spread, limit = -0.3, 1.4 / 12**0.5, -0.3
    for _ in range(60):
        limit = cost + float(betting_margin(f64(spread), f64(limit), certificate))
    costs_Dn = np.random.default_rng(0).uniform(-1.0, 0.4, (200, 200))
    certified = np.mean([BoundedMean(cost_n, -1.0, 1.0).p_above(limit) <= 0.05 for cost_n in costs_Dn])
    assert certified > 0.85


def test_with_many_prompts_the_betting_margin_needs_the_root_of_twice_the_log_in_place_of_a_quantile() -> None:
    """(sqrt(2 log 20) + 0.8416) spreads / √n, where the stake does not cap the bets: 1.32 times Student's."""
    certificate = CertifiedWith(160_000, 0.95, 0.8, [-1.0, 1.0])
    found = float(betting_margin(f64(0.9), f64(0.0), certificate))
    assert found == pytest.approx((math.sqrt(2 * math.log(20)) + 0.8416) * 0.9 / 400, rel=0.02)


def test_without_spread_a_capped_bet_must_still_win_the_log_of_the_error() -> None:
    """Every bet wins: the sum of log(1 + bet · margin) is log 20."""
    n, limit = 400, 0.0
    margin = float(betting_margin(f64(0.0), f64(limit), CertifiedWith(n, 0.95, 0.8, [-1.0, 1.0]))) / 2
    bet_n = np.minimum(np.sqrt(2 * math.log(20) * (np.arange(n) + 1) / (n * 0.25)), STAKE / 0.5)
    assert np.log1p(bet_n * margin).sum() == pytest.approx(math.log(20), rel=1e-9)
    assert BoundedMean(np.full(n, limit - 2.2 * margin), -1.0, 1.0).p_above(limit) <= 0.05
    assert BoundedMean(np.full(n, limit - 1.8 * margin), -1.0, 1.0).p_above(limit) > 0.05


def test_the_margin_does_not_depend_on_the_unit_and_its_constraints_share_the_error() -> None:
    one = betting_margin(f64(0.5), f64(0.1), CertifiedWith(cost_range=[-1.0, 2.0]))
    hundred = betting_margin(f64(50.0), f64(10.0), CertifiedWith(cost_range=[-100.0, 200.0]))
    assert float(hundred) == pytest.approx(100 * float(one))
    two = betting_margin(f64([0.5, 0.5]), f64(0.1), CertifiedWith(cost_range=[-1.0, 2.0]))
    half = betting_margin(f64(0.5), f64(0.1), CertifiedWith(level=0.975, cost_range=[-1.0, 2.0]))
    assert two.tolist() == pytest.approx([float(half)] * 2)


def test_a_limit_that_no_policy_can_be_certified_for_has_the_whole_way_as_its_margin() -> None:
    assert float(betting_margin(f64(2.0), f64(-0.9), CertifiedWith(10, cost_range=[-1.0, 1.0]))) == pytest.approx(0.1)


# -- the option


def test_a_spread_that_is_not_given_follows_from_the_error_and_one_that_is_not_known_gives_no_margin() -> None:
    """stderr 0.1 of 25 prompts: a spread of 0.5."""
    auto = SafetyMargin("auto", CertifiedWith())
    known = CostEstimate(f64(0.0), f64(0.1), 50, f64(0.5), 50.0, clusters=25)
    assert auto.of(known, f64(0.0)) == student_margin(f64(0.5), CertifiedWith())
    assert auto.of(known._replace(spread=f64(0.7)), f64(0.0)) == student_margin(f64(0.7), CertifiedWith())
    assert auto.of(known._replace(stderr=f64(math.nan)), f64(0.0)) == 0
    bets = CertifiedWith(cost_range=[-1.0, 1.0])
    assert SafetyMargin("auto", bets).of(known, f64(0.2)) == betting_margin(f64(0.5), f64(0.2), bets)


@pytest.mark.parametrize(
    "options",
    [{"n": 1}, {"level": 1.0}, {"power": 0.5}, {"cost_range": [1.0]}, {"cost_range": [2.0, 1.0]},
     {"cost_range": [0.0, math.inf]}],
)  # fmt: skip
def test_a_certificate_that_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"margin_for.{next(iter(options))} must"):
        CertifiedWith(**options)


@pytest.mark.parametrize("margin", [-0.1, math.nan, [0.0, math.inf]])
def test_a_margin_that_is_negative_or_not_finite_is_refused(margin: float) -> None:
    with pytest.raises(ValueError, match="margin must be auto, or >= 0"):
        DualAscent(margin=margin)


@pytest.mark.parametrize(
    ("limit", "n", "said"),
    [
        (-3.0, 400, r"limit -3.0 is not inside margin_for.cost_range \[-2, 2\]"),
        (-1.9, 9, "margin_for.n 9 is too small: with so many prompts no policy can be certified for the limit of harm"),
    ],
)
def test_a_certificate_out_of_reach_is_refused_before_the_first_step(
    tmp_path: Path, limit: float, n: int, said: str
) -> None:
    test = CertifiedWith(n, cost_range=[-2.0, 2.0])
    dual = DualAscent(limit=limit, margin="auto", margin_for=test, lr=0.1, estimator=ExactCost())
    with pytest.raises(ValueError, match=said):
        trainer(tmp_path, dual).fit(module(), datamodule=Toy(2))


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
    assert dual.notes() == ["The multiplier steered to less than the limit: λ steers 0.3 below it (dual.margin)."]
    assert optimal_cost(solve(limit - margin)) == pytest.approx(limit - margin, abs=1e-6)


def test_each_constraint_has_its_own_margin(tmp_path: Path) -> None:
    costs = torch.stack((COST, COST), dim=-1)
    dual = DualAscent(limit=-0.3, margin=[0.0, 0.2], lr=0.5, estimator=ExactCost((COST, COST)))
    model = module([0.5, 0.5])
    trainer(tmp_path, dual, max_epochs=1).fit(model, datamodule=Toy(2, costs, ("harm", "dullness")))
    assert float(model.multiplier[1] - model.multiplier[0]) == pytest.approx(0.5 * 0.2, abs=1e-6)
