"""How large the dual step may be: Newton's where the policy settles between steps, less where it lags behind."""

from pathlib import Path
from typing import Any

import pytest

from lit_safe.constraint.dual_ascent import DualAscent
from tests.lit_safe.constraint.test_dual import module, trainer
from tests.lit_safe.dual_world import BETA, COST, ExactCost, Toy, optimum, solve

LIMIT = -0.3
STAR = solve(LIMIT)
SETTLES, SHORT = 100, 10  # optimizer steps of an epoch


class Watched(ExactCost):
    """Notes multiplier and cost of every epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.path: list[tuple[float, float]] = []

    def __call__(self, module: Any, data: Any, *, seed: int, epoch: int) -> Any:
        estimate = super().__call__(module, data, seed=seed, epoch=epoch)
        self.path.append((float(module.multiplier), float(estimate.mean)))
        return estimate


def path(folder: Path, lr: float, steps: int, epochs: int, start: float = 0.0) -> list[tuple[float, float]]:
    """(multiplier, cost) of every epoch."""
    estimator = Watched()
    dual = DualAscent(limit=LIMIT, lr=lr, estimator=estimator)
    trainer(folder, dual, max_epochs=epochs, logger=False).fit(module(start), datamodule=Toy(steps))
    return estimator.path


def fall(folder: Path, steps: int) -> float:
    """How far an epoch's cost falls when the multiplier rises by one about the solution."""
    low, high = (path(folder, 0.0, steps, 1, STAR + offset)[0][1] for offset in (-0.5, 0.5))
    return low - high


@pytest.fixture(scope="module")
def s(tmp_path_factory: pytest.TempPathFactory) -> float:
    """The fall of a policy that has settled."""
    return fall(tmp_path_factory.mktemp("settled"), SETTLES)


def test_where_the_policy_settles_the_measured_step_is_the_closed_forms_and_lands_on_the_limit(
    s: float, tmp_path: Path
) -> None:
    pi_PK = optimum(STAR).exp()
    mean_P = (pi_PK * COST).sum(-1, keepdim=True)
    variance = float((pi_PK * (COST - mean_P) ** 2).sum(-1).mean())
    assert s == pytest.approx(variance / BETA, rel=0.1)
    settled = [cost - LIMIT for _, cost in path(tmp_path, 1 / s, SETTLES, 4)]
    assert settled[0] > 1
    assert abs(settled[1]) < 0.15  # one step
    assert abs(settled[3]) < 0.02
    swinging = [cost - LIMIT for _, cost in path(tmp_path, 2.5 / s, SETTLES, 4)]
    assert abs(swinging[3]) > 0.3


def test_where_it_lags_behind_newtons_step_swings_and_a_quarter_of_its_share_does_not(s: float, tmp_path: Path) -> None:
    short = fall(tmp_path, SHORT)
    share = short / s
    assert share < 0.8
    over = [multiplier for multiplier, _ in path(tmp_path, 1 / short, SHORT, 8)]
    assert max(over) > 1.5 * STAR
    calm = path(tmp_path, share / (4 * s), SHORT, 16)
    assert max(multiplier for multiplier, _ in calm) < STAR
    assert calm[-1][0] == pytest.approx(STAR, rel=0.1)
