"""MoCAN and PeCAN in the oracle world: labels, the one-shot dual and the trained optimum agree with the exact ones.

Letters: P prompts, K cells of the response partition.
"""

import numpy as np
import pytest
import torch
from scipy.special import expit

from data.oracle.truth.optimum import solve_multiplier, tilt
from data.oracle.world import World, oracle_world
from lit_safe.constraint.reachability.reach import reach
from lit_safe.constraint.reachability.tilt import Samples, scored_samples
from lit_safe.objectives import ConstrainedDPO
from lit_safe.types import Annotation, Pair

BETA, LIMIT = 0.5, -0.3


@pytest.fixture(scope="module")
def world() -> World:
    return oracle_world()


def author(world: World) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(world.author_PK)


def two(world: World) -> np.ndarray:
    """[P, 2] two different responses to each prompt, drawn from the author."""
    random = np.random.default_rng(5)
    rows = [random.choice(world.author_PK.shape[1], 2, replace=False, p=row / row.sum()) for row in world.author_PK]
    return np.array(rows)


def implied(world: World) -> tuple[np.ndarray, np.ndarray]:
    """[P, K] reward and cost that PeCAN reads off two aligned policies: the optima of DPO on each of them."""
    reference_PK, nothing_PK = author(world), np.zeros_like(world.reward_PK)
    helpful_PK = tilt(reference_PK, world.reward_PK, world.cost_PKC, 0.0, BETA)
    safe_PK = tilt(reference_PK, nothing_PK, world.cost_PKC, 1.0, BETA)
    with np.errstate(invalid="ignore"):
        return BETA * (helpful_PK - reference_PK), -BETA * (safe_PK - reference_PK)


def drawn(world: World, reward_PK: np.ndarray, cost_PK: np.ndarray, prompts: int = 64, each: int = 64) -> Samples:
    random = np.random.default_rng(3)
    row_P = random.integers(0, len(world.prompts), prompts)
    cdf_PK = world.author_PK.cumsum(-1)
    number_PK = random.random((prompts, each)) * cdf_PK[row_P, -1:]
    cell_PK = np.stack([cdf_PK[row].searchsorted(n, side="right") for row, n in zip(row_P, number_PK, strict=True)])
    return scored_samples(reward_PK[row_P[:, None], cell_PK], cost_PK[row_P[:, None], cell_PK])


def test_pecans_labels_are_those_of_mocan(world: World) -> None:
    """The number for each prompt cancels: sigma of the log-ratios is sigma of the true scores."""
    reward_PK, cost_PK = implied(world)
    cell_P2 = two(world)

    def margin(score_PK: np.ndarray) -> np.ndarray:
        one, other = np.take_along_axis(score_PK, cell_P2, 1).T
        return np.asarray(one - other)

    true = margin(world.reward_PK) - 1.3 * margin(world.cost_PKC[..., 0])
    np.testing.assert_allclose(margin(reward_PK) - 1.3 * margin(cost_PK), true, atol=1e-9)
    assert np.ptp(expit(true)) > 0.3  # the labels say something


def test_training_on_mocans_labels_is_least_at_the_optimum_of_its_multiplier(world: World) -> None:
    multiplier = 0.8
    policy_PK = tilt(author(world), world.reward_PK, world.cost_PKC, multiplier, BETA)
    cell_P2 = two(world)

    def side(score_PK: np.ndarray, k: int) -> torch.Tensor:
        return torch.from_numpy(np.take_along_axis(score_PK, cell_P2, 1)[:, k].copy())

    with np.errstate(invalid="ignore"):  # the author never writes some cells
        ratio_PK = policy_PK - author(world)
    ratio = Pair(side(ratio_PK, 0).requires_grad_(), side(ratio_PK, 1))
    label = Annotation(*(Pair(side(s, 0), side(s, 1)) for s in (world.reward_PK, world.cost_PKC[..., 0])))
    loss_P = ConstrainedDPO(beta=BETA)(ratio, label, torch.tensor(multiplier, dtype=torch.float64)).loss
    (slope_P,) = torch.autograd.grad(loss_P.sum(), ratio.chosen)
    assert slope_P.abs().max() < 1e-12


def test_the_one_shot_dual_reports_what_mocan_needs_and_meets_the_exact_multiplier(world: World) -> None:
    (exact,) = solve_multiplier(author(world), world.reward_PK, world.cost_PKC, LIMIT, BETA)
    samples = drawn(world, world.reward_PK, world.cost_PKC[..., 0], prompts=400)
    found = reach(samples, ["cost"], [LIMIT], BETA, [10.0], [])
    assert found.optimum.multiplier[0] == pytest.approx(exact, abs=4 * found.multiplier_stderr[0])
    assert abs(found.optimum.gap) < 1e-8
    assert 1 <= found.optimum.effective_least <= found.optimum.effective_median <= 64
    (one,), (other,) = found.halves
    assert min(one, other) < found.optimum.multiplier[0] < max(one, other)
    assert found.half_regret >= 0


def test_pecans_dual_finds_mocans_multiplier_if_its_limit_counts_from_the_reference(world: World) -> None:
    reward_PK, cost_PK = implied(world)
    true, read = drawn(world, world.reward_PK, world.cost_PKC[..., 0]), drawn(world, reward_PK, cost_PK)
    moved = LIMIT - true.cost_PKC.mean() + read.cost_PKC.mean()  # as reach.json's cost_of_reference gives it
    mocan = reach(true, ["cost"], [LIMIT], BETA, [10.0], []).optimum.multiplier[0]
    shift_P = (read.cost_PKC - true.cost_PKC).mean((1, 2))
    assert shift_P.std() > 0.01  # each prompt has its own number
    pecan = reach(read, ["cost"], [float(moved)], BETA, [10.0], []).optimum.multiplier[0]
    assert pecan == pytest.approx(mocan, rel=1e-6)
    assert mocan > 0.1
