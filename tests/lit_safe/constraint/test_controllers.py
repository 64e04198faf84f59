"""Each controller's step against numbers worked by hand, its ends, its symmetries, and what no input can do to it."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_safe.constraint.controllers import Controller, Stateful
from lit_safe.constraint.controllers.fixed import Fixed
from lit_safe.constraint.controllers.log_barrier import LogBarrier
from lit_safe.constraint.controllers.log_space import LogSpace
from lit_safe.constraint.controllers.newton import DiagonalNewton
from lit_safe.constraint.controllers.pid import PIDLagrangian
from lit_safe.constraint.controllers.scheduled import Scheduled
from lit_safe.constraint.controllers.subgradient import ProjectedSubgradient
from lit_safe.training.schedules import Linear
from lit_safe.types import CostEstimate

BETA = 0.5
EVERY: dict[str, Callable[[], Controller]] = {
    "fixed": Fixed,
    "subgradient": lambda: ProjectedSubgradient(0.5, Linear(final=0.2)),
    "log space": lambda: LogSpace(lr=0.5, window=2, delay=1),
    "pid": lambda: PIDLagrangian(0.4, 0.3, 0.2, 2, 0.3, 0.6),
    "log barrier": lambda: LogBarrier(0.2, rate=0.7, decay=0.9),
    "scheduled": lambda: Scheduled(1.0, 3.0, 0.5),
    "newton": lambda: DiagonalNewton(0.7),
}
every = pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)


def f64(value: float | Sequence[float]) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def estimate(mean: Any, stderr: Any = 0.1, within: Any = None) -> CostEstimate:
    mean = f64(mean)
    error = f64(stderr).expand(mean.shape)
    return CostEstimate(mean, error, 40, f64(0.5), 40.0, clusters=20, within=None if within is None else f64(within))


def path(controller: Controller, start: Any, costs: Sequence[Any], limit: Any = 0.0, **options: Any) -> list[Any]:
    """The multipliers from ``start`` on, one after each cost."""
    multiplier = controller.start(f64(start), BETA)
    limit = f64(limit).expand(multiplier.shape)
    values = [multiplier.tolist()]
    for number, cost in enumerate(costs):
        multiplier = controller.step(multiplier, estimate(cost, **options), limit, number, len(costs))
        values.append(multiplier.tolist())
    return values


# -- steps worked by hand


def test_the_subgradient_step_follows_the_violation() -> None:
    """0.5 + 0.1 * (2 - 0.5) = 0.65."""
    assert path(ProjectedSubgradient(0.1), 0.5, [2.0], 0.5) == [0.5, pytest.approx(0.65)]


def test_each_constraint_has_its_own_limit_step_and_maximum() -> None:
    rule = ProjectedSubgradient([1.0, 1.0, 1.0, 2.0], maximum=[10.0, 10.0, 10.0, 2.5])
    assert path(rule, [1.0] * 4, [[1.0, 1.0, 0.0, 1.0]], [0.0, 1.0, 5.0, 0.0])[1] == [2.0, 1.0, 0.0, 2.5]


def test_the_subgradient_step_shrinks_with_its_schedule() -> None:
    """Linear to 0 over two steps: factors 1 and 1/2."""
    moved = path(ProjectedSubgradient(0.4, Linear(final=0.0)), 0.0, [1.0, 1.0])
    assert moved == pytest.approx([0.0, 0.4, 0.6])


def test_the_log_space_step_multiplies_the_multiplier() -> None:
    """exp(log 2 + 0.1 * 2 * (1.5 - 0.5)) = 2 exp(0.2), the gradient of (cost - limit) exp(s) being that times λ."""
    assert path(LogSpace(lr=0.1), 2.0, [1.5], 0.5)[1] == pytest.approx(2 * math.exp(0.2), rel=1e-12)


def test_log_space_waits_for_its_delay_and_compares_the_mean_of_its_window() -> None:
    """Delay 1 keeps λ; the window of two then holds 4 and 0, whose mean is 2; then 0 and 0."""
    moved = path(LogSpace(init=1.0, lr=0.1, delay=1, window=2), 7.0, [4.0, 0.0, 0.0], 1.0)
    second = math.exp(0.1 * 1.0 * (2 - 1))
    assert moved == pytest.approx([1.0, 1.0, second, math.exp(math.log(second) - 0.1 * second)], rel=1e-12)


def test_log_space_stays_between_its_ends() -> None:
    assert path(LogSpace(lr=5.0, maximum=3.0, minimum=0.2), 1.0, [9.0, -9.0, -9.0])[1:] == pytest.approx([3, 0.2, 0.2])


def test_the_pid_rule_adds_its_three_terms() -> None:
    """kp 0.5, ki 0.2, kd 0.3, no smoothing, costs 1, 2, 1.5 over the limit 0.5, integral from 0.1.

    P: 0.25, 0.75, 0.5; I: 0.2, 0.5, 0.7; D counts rises alone: 0, 0.3, 0.
    """
    moved = path(PIDLagrangian(0.5, 0.2, 0.3), 0.1, [1.0, 2.0, 1.5], 0.5)
    assert moved == pytest.approx([0.1, 0.45, 1.55, 1.2], rel=1e-12)


def test_the_pid_rule_smooths_as_omnisafe_does() -> None:
    """alpha_p 0.5: smoothed excess 0.5, 1.25. alpha_d 0.5: smoothed cost 1, 1.5; the rise over two steps is 0, 0.5."""
    moved = path(PIDLagrangian(1.0, 0.0, 1.0, 2, 0.5, 0.5), 0.0, [1.0, 2.0], 0.0)
    assert moved == pytest.approx([0.0, 0.5, 1.25 + 0.5], rel=1e-12)


def test_the_integral_alone_is_the_subgradient_step() -> None:
    costs = [1.0, 0.4, -0.3, -2.0, 0.5]
    assert path(PIDLagrangian(0.0, 0.3, 0.0), 0.2, costs) == pytest.approx(path(ProjectedSubgradient(0.3), 0.2, costs))


def test_the_integral_does_not_wind_up_beyond_the_maximum() -> None:
    """After 50 steps over a limit out of reach, one step below it brings the multiplier down at once."""
    moved = path(PIDLagrangian(0.0, 1.0, 0.0, penalty_max=2.0), 0.0, [3.0] * 50 + [-1.0])
    assert moved[-2:] == [2.0, 1.0]


@pytest.mark.parametrize(("norm", "end"), [({"diff_norm": True}, 1.0), ({"sum_norm": True}, 60.0), ({}, 10.0)])
def test_the_norms_of_omnisafe_change_the_maximum(norm: dict[str, bool], end: float) -> None:
    assert path(PIDLagrangian(0.0, 2.0, 0.0, **norm), 0.0, [3.0] * 10)[-1] == pytest.approx(end)


def test_the_barrier_divides_eta_by_the_slack_less_the_error() -> None:
    """0.3 / (1 - 0.2 - 2 * 0.1) = 0.5; at rate 0.5 the multiplier goes half the way from 0.1."""
    assert path(LogBarrier(0.3, 2.0, rate=1.0), 0.1, [0.2], 1.0)[1] == pytest.approx(0.5, rel=1e-12)
    assert path(LogBarrier(0.3, 2.0, rate=0.5), 0.1, [0.2], 1.0)[1] == pytest.approx(0.3, rel=1e-12)


def test_the_barrier_recovers_outside_the_limit_and_divides_by_reg_just_inside() -> None:
    rule = LogBarrier(0.2, 0.0, reg=0.1, rate=1.0, recovery=4.0)
    assert path(rule, 0.0, [1.5, 1.0, 0.99], 1.0) == pytest.approx([0.0, 4.0, 4.0, 2.0])


def test_the_barrier_rests_where_the_multiplier_is_eta_over_the_slack() -> None:
    """Slack 0.4 and eta 0.2: λ = 0.5 is its target."""
    assert path(LogBarrier(0.2, 0.0), 0.5, [0.6] * 5, 1.0) == pytest.approx([0.5] * 6)


def test_a_barrier_whose_estimate_has_no_error_stays_or_ignores_it() -> None:
    assert path(LogBarrier(0.3, 2.0), 0.7, [0.2], 1.0, stderr=math.nan)[1] == 0.7
    assert path(LogBarrier(0.4, 0.0, rate=1.0), 0.7, [0.2], 1.0, stderr=math.nan)[1] == pytest.approx(0.5)


def test_a_schedule_reaches_its_end_before_the_last_epoch_that_trains() -> None:
    """Five epochs: four of them follow a step, so λ is 0, 0.5, 1, 1.5, 2; the fifth step trains nothing."""
    assert path(Scheduled(0.0, 2.0), 9.0, [1.0] * 5) == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0, 2.0])
    assert path(Scheduled(2.0, 1.0, 0.5), 9.0, [1.0] * 5) == pytest.approx([2.0, 1.5, 1.0, 1.0, 1.0, 1.0])


def test_newtons_step_divides_by_variance_over_beta() -> None:
    """Slope 2 / 0.5 = 4: 1 + 0.8 * 0.6 / 4 = 1.12. Then the smoothed variance is (2 + 1) / 2, slope 3."""
    rule = DiagonalNewton(0.8)
    first = rule.step(rule.start(f64(1.0), BETA), estimate(0.6, within=2.0), f64(0.0), 0, None)
    second = rule.step(first, estimate(0.6, within=1.0), f64(0.0), 1, None)
    assert [first, second] == pytest.approx([1.12, 1.12 + 0.8 * 0.6 / 3], rel=1e-12)


def test_newtons_step_is_bounded_as_the_variance_vanishes() -> None:
    """floor 0.1 of the largest variance 2: slope at least 0.4."""
    rule = DiagonalNewton(1.0, smoothing=0.0)
    rule.step(rule.start(f64(1.0), BETA), estimate(0.0, within=2.0), f64(0.0), 0, None)
    assert rule.step(f64(1.0), estimate(0.2, within=0.0), f64(0.0), 1, None) == pytest.approx(1 + 0.2 / 0.4)


def test_newton_takes_the_variance_between_prompts_where_no_other_is_known() -> None:
    """stderr² · 20 prompts = 0.01 * 20 = 0.2; slope 0.4."""
    assert path(DiagonalNewton(1.0), 1.0, [0.2])[1] == pytest.approx(1.5, rel=1e-12)


def test_newton_waits_for_a_variance() -> None:
    assert path(DiagonalNewton(1.0), 1.0, [0.2, 0.5], stderr=math.nan) == [1.0, 1.0, 1.0]


def test_a_fixed_multiplier_stays() -> None:
    assert path(Fixed(), 0.3, [5.0, -5.0]) == [0.3] * 3
    assert path(Fixed([0.1, 0.2]), [7.0, 7.0], [[5.0, 5.0]]) == [[0.1, 0.2]] * 2
    assert not Fixed().moves


# -- what holds for all


COSTS = [[1.0, -0.5, 0.2], [0.5, 0.7, -0.1], [0.8, 0.1, 0.3], [-0.4, 0.2, 0.4]]


@every
def test_the_order_of_constraints_does_not_matter(make: Callable[[], Controller]) -> None:
    order = [2, 0, 1]
    one = path(make(), [0.5, 1.0, 2.0], COSTS, [0.1, 0.2, 0.3])
    other = path(make(), [2.0, 0.5, 1.0], [[c[i] for i in order] for c in COSTS], [0.3, 0.1, 0.2])
    assert [[row[i] for i in order] for row in one] == other


@every
def test_constraints_do_not_see_each_other(make: Callable[[], Controller]) -> None:
    together = path(make(), [0.5, 1.0, 2.0], COSTS, [0.1, 0.2, 0.3])
    alone = path(make(), 1.0, [cost[1] for cost in COSTS], 0.2)
    assert [row[1] for row in together] == pytest.approx(alone, rel=1e-14)


@every
def test_a_constant_added_to_cost_and_limit_changes_nothing(make: Callable[[], Controller]) -> None:
    plain = path(make(), 0.7, [cost[0] for cost in COSTS], 0.25)
    assert path(make(), 0.7, [cost[0] + 8 for cost in COSTS], 8.25) == pytest.approx(plain, rel=1e-12)


def test_newtons_step_does_not_depend_on_the_unit_of_the_cost() -> None:
    """In units 100 times as small the cost is 100 times as large, and λ a hundredth."""
    plain = path(DiagonalNewton(0.7, maximum=4.0), 1.0, [0.5, -0.2, 0.3], within=0.3)
    small = path(DiagonalNewton(0.7, maximum=0.04), 0.01, [50.0, -20.0, 30.0], within=3000.0)
    assert [100 * value for value in small] == pytest.approx(plain, rel=1e-12)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_multiplier_keeps_its_type(make: Callable[[], Controller], dtype: torch.dtype) -> None:
    start = make().start(torch.tensor([0.5, 1.0], dtype=dtype), BETA)
    rule = make()
    rule.start(start, BETA)
    moved = rule.step(start, estimate([0.4, -0.3]), f64([0.0, 0.0]), 0, 3)
    assert (moved.dtype, moved.shape) == (dtype, start.shape)


@every
@given(st.data())
@settings(max_examples=60, deadline=None)
def test_no_finite_cost_gives_a_nan_or_leaves_the_interval(make: Callable[[], Controller], data: st.DataObject) -> None:
    number = st.floats(-1e6, 1e6)
    positive = st.floats(0, 1e6) | st.just(math.nan)
    rule = make()
    limit = f64([data.draw(number), data.draw(number)])
    multiplier = rule.start(torch.tensor([0.01, 10.0]), BETA)
    for k in range(4):
        seen = estimate(
            [data.draw(number), data.draw(number)],
            [data.draw(positive), data.draw(positive)],
            data.draw(st.none() | st.tuples(positive, positive)),
        )
        multiplier = rule.step(multiplier, seen, limit, k, 4)
        assert bool(multiplier.isfinite().all())
        assert bool(((multiplier >= 0) & (multiplier <= rule.maximum.float())).all())


@every
def test_a_controller_continued_from_its_state_takes_the_same_steps(make: Callable[[], Controller]) -> None:
    limit = f64([0.1, 0.2, 0.3])

    def go(rule: Controller, value: Tensor, at: range) -> Tensor:
        for k in at:
            value = rule.step(value, estimate(COSTS[k], within=[0.3, 0.4, 0.5]), limit, k, 4)
        return value

    start = torch.tensor([0.5, 1.0, 2.0])
    for cut in range(4):
        first, second = make(), make()
        middle = go(first, first.start(start, BETA), range(cut))
        second.start(start, BETA)
        if isinstance(first, Stateful):
            assert isinstance(second, Stateful)
            second.load_state_dict(copy.deepcopy(first.state_dict()))
        whole = make()
        assert torch.equal(go(second, middle, range(cut, 4)), go(whole, whole.start(start, BETA), range(4)))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ProjectedSubgradient(-1.0), "lr must be >= 0 and finite"),
        (lambda: ProjectedSubgradient(maximum=[1.0, 0.0]), "maximum must be > 0"),
        (lambda: LogSpace(init=0.0), "init must be > 0"),
        (lambda: LogSpace(window=0), "window >= 1"),
        (lambda: LogSpace(minimum=6.0, maximum=5.0), "minimum must be <= maximum"),
        (lambda: PIDLagrangian(0.0, 0.0, 0.0), "are all 0"),
        (lambda: PIDLagrangian(pid_delta_p_ema_alpha=1.0), r"pid_delta_p_ema_alpha must lie in \[0, 1\)"),
        (lambda: PIDLagrangian(pid_d_delay=0), "pid_d_delay must be at least 1"),
        (lambda: PIDLagrangian(sum_norm=True, diff_norm=True), "exclude each other"),
        (lambda: LogBarrier(decay=1.5), "decay must be > 0 and <= 1"),
        (lambda: LogBarrier(confidence=-1.0), "confidence must be >= 0"),
        (lambda: Scheduled(share=0.0), "share must be > 0"),
        (lambda: DiagonalNewton(smoothing=1.0), r"smoothing must lie in \[0, 1\)"),
        (lambda: Fixed(-1.0), "value must be >= 0"),
        (lambda: LogSpace().start(f64(0.0), BETA), "set dual.controller.init"),
        (lambda: LogSpace(init=1e-6).start(f64(0.0), BETA), "init 1e-06 is below minimum"),
        (lambda: Fixed([1.0, 2.0]).start(f64(0.0), BETA), r"value has shape \[2\], the module's multiplier \[\]"),
        (lambda: PIDLagrangian([1.0] * 3).start(f64([0.0, 0.0]), BETA), r"pid_kp has shape \[3\]"),
    ],
)
def test_settings_out_of_their_range_are_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
