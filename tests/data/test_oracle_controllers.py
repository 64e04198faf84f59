"""Simulated controllers: the closed form behind them, where each comes to rest, and the page that shows them."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax

from data.oracle.study.controllers import (
    BETA,
    FOLLOWS,
    KEPT,
    LIMIT,
    SCALES,
    Cost,
    Rule,
    one_shot,
    row,
    rules,
    rules_of_units,
    runs_of,
    settles,
    simulate,
    table,
    with_tables,
)
from data.oracle.study.controllers_plot import plot_controllers
from data.oracle.truth.optimum import measure, tilt

PAGE = Path(__file__).parents[2] / "docs" / "controllers.md"
LIMIT_C = np.array([LIMIT])


@cache
def world() -> Cost:
    return Cost()


@cache
def every() -> dict[str, Rule]:
    return rules(world(), LIMIT)


def test_a_policy_half_way_between_two_optima_is_the_optimum_of_the_mean_multiplier() -> None:
    tables = (world().reference_PK, world().reward_PK, world().cost_PKC)
    one_PK, two_PK = (tilt(*tables, multiplier, BETA) for multiplier in (0.5, 2.5))
    with np.errstate(invalid="ignore"):
        half_PK = log_softmax(np.where(np.isfinite(one_PK), (one_PK + two_PK) / 2, -np.inf), -1)
    assert np.exp(half_PK) == pytest.approx(np.exp(tilt(*tables, 1.5, BETA)))
    assert world().moments(1.0, np.array([1.5]))[0] == pytest.approx(measure(half_PK, *tables).cost)


def test_the_slope_is_that_of_the_exact_cost() -> None:
    at, step = np.array([1.3]), 1e-5
    fall = (world().at_optimum(at - step) - world().at_optimum(at + step)) / (2 * step)
    assert world().slope(at) == pytest.approx(fall, rel=1e-6)


@pytest.mark.parametrize("follows", FOLLOWS)
@pytest.mark.parametrize(
    "name", ["fixed", "one-shot dual", "schedule", "subgradient", "log space", "PID", "log barrier", "Newton"]
)
def test_every_controller_comes_to_rest_on_its_own_target(name: str, follows: float) -> None:
    rule = every()[name]
    run = simulate(world(), rule, LIMIT_C, follows)
    assert run.cost[-1] == pytest.approx(rule.target, abs=1e-3)
    assert world().at_optimum(run.multiplier[-1]) == pytest.approx(rule.target, abs=5e-3)


def test_the_barriers_target_is_eta_over_the_slack_inside_the_limit() -> None:
    rule = every()["log barrier"]
    run = simulate(world(), rule, LIMIT_C, 1.0)
    assert run.multiplier[-1] * (LIMIT - run.cost[-1]) == pytest.approx(rule.settings["eta"], rel=1e-3)
    assert rule.target[0] < LIMIT - 0.05


def test_the_one_shot_duals_error_is_drawn_once_and_shrinks_with_prompts_and_samples() -> None:
    rule, star = every()["one-shot dual"], every()["fixed"].settings["value"]
    noisy = simulate(world(), rule, LIMIT_C, 1.0, True, 3, 6).multiplier[:, 0]
    assert np.ptp(noisy) == 0 != noisy[0] - star  # no epoch corrects it
    few, many = (
        np.std([one_shot(world(), LIMIT, seed, prompts, samples) - star for seed in range(8)])
        for prompts, samples in ((16, 16), (256, 256))
    )
    assert 0 < 2 * many < few


def test_twice_newtons_step_swings_for_ever() -> None:
    gain = 2 * every()["subgradient"].settings["lr"]
    newton, twice = (
        simulate(world(), Rule("subgradient.ProjectedSubgradient", {"lr": lr}, LIMIT_C), LIMIT_C, 1.0).cost[-10:]
        for lr in (gain, 2.2 * gain)
    )
    assert np.abs(newton - LIMIT).max() < 1e-3
    assert np.abs(twice - LIMIT).max() > 0.05


def test_noise_is_drawn_by_its_seed_and_spreads_the_cost() -> None:
    rule = every()["subgradient"]
    one, again, other = (simulate(world(), rule, LIMIT_C, 1.0, True, seed, 12).cost for seed in (3, 3, 4))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_newton_alone_finds_the_steps_of_three_units() -> None:
    three = Cost("each", SCALES)
    limit_C = three.at_optimum(1.0 / np.array(SCALES))
    ends = {
        name: np.abs((simulate(three, rule, limit_C, 1.0).cost[-1] - limit_C) / SCALES).max()
        for name, rule in rules_of_units(three, limit_C).items()
    }
    assert ends["Newton"] < 1e-3 < 0.1 < ends["subgradient, one lr"]


def test_settling_counts_from_the_last_time_outside() -> None:
    assert settles(np.array([1.0, 0.01, 0.3, 0.05, 0.02]), 0.05) == 4
    assert settles(np.array([0.01, 0.0]), 0.05) == 1
    assert settles(np.array([0.01, 0.3]), 0.05) is None


@pytest.mark.parametrize(("name", "follows"), [("subgradient", 0.3), ("PID", 1.0), ("log barrier", 1.0)])
def test_the_page_shows_what_the_simulation_gives(name: str, follows: float) -> None:
    """All columns without noise."""
    found = row(world(), name, every()[name], LIMIT_C, follows, runs_of(world(), every()[name], LIMIT_C, follows, 1))
    expected = table([found]).splitlines()[-1].split(" | ")[:7]
    shown = [line.split(" | ")[:7] for line in PAGE.read_text(encoding="utf-8").splitlines()]
    assert expected in shown
    assert found.relapse <= 3 * KEPT


def test_a_page_without_a_place_for_a_table_is_refused() -> None:
    page = "a\n<!-- one -->\nold\n<!-- end -->\nb"
    assert with_tables(page, {"one": "new\n"}) == "a\n<!-- one -->\n\nnew\n\n<!-- end -->\nb"
    with pytest.raises(ValueError, match="no '<!-- two -->'"):
        with_tables(page, {"two": "x"})


def test_the_figure_is_drawn_of_all_controllers(tmp_path: Path) -> None:
    runs = {name: {1.0: [simulate(world(), every()[name], LIMIT_C, 1.0, epochs=4)] * 2} for name in ("PID", "Newton")}
    plot_controllers(runs, LIMIT, 1.8, tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 5_000
