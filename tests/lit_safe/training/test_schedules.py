"""Learning-rate factors at the start, at the end, and between."""

import math
from typing import Any

import pytest

from lit_safe.training.schedules import Constant, Cosine, Linear


@pytest.mark.parametrize("schedule", [Constant(0.1), Cosine(0.1), Linear(0.1)])
def test_the_warm_up_rises_in_even_steps_and_never_starts_at_zero(schedule: Constant) -> None:
    factors = [schedule(step, 100) for step in range(10)]
    assert factors == pytest.approx([(step + 1) / 11 for step in range(10)])


@pytest.mark.parametrize(("schedule", "end"), [(Constant(), 1.0), (Cosine(0.0, 0.1), 0.1), (Linear(0.0, 0.2), 0.2)])
def test_the_last_factor_is_the_stated_one(schedule: Constant, end: float) -> None:
    assert schedule(100, 100) == pytest.approx(end)


def test_halfway_a_cosine_is_half_way_down() -> None:
    assert Cosine(0.0, 0.0)(50, 100) == pytest.approx(0.5)


def test_a_run_of_one_step_has_a_rate() -> None:
    assert all(schedule(0, 1) > 0 for schedule in (Constant(0.03), Cosine(0.03), Linear(0.03)))


def test_a_cosine_may_end_early_and_stay() -> None:
    schedule = Cosine(0.0, 0.1, until=0.5)
    assert schedule(25, 100) == pytest.approx(0.55)
    assert schedule(50, 100) == schedule(99, 100) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="until"):
        Cosine(until=0.0)


@pytest.mark.parametrize("kind", [Constant, Cosine, Linear])
@pytest.mark.parametrize("ratio", [-0.1, 1.0, 10.0, math.nan])
def test_a_warm_up_outside_its_range_is_refused(kind: Any, ratio: float) -> None:
    with pytest.raises(ValueError, match=r"warmup_ratio must lie in \[0, 1\), got"):
        kind(warmup_ratio=ratio)


@pytest.mark.parametrize("kind", [Cosine, Linear])
@pytest.mark.parametrize("final", [-0.1, 1.5, math.inf, math.nan])
def test_a_final_factor_outside_its_range_is_refused(kind: Any, final: float) -> None:
    with pytest.raises(ValueError, match=r"final must lie in \[0, 1\], got"):
        kind(final=final)
