"""What objectives learn from all pairs there are: the closed form where there is one, a warning where none is."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, log_softmax, logit
from torch.autograd.functional import hessian, jacobian

from data.oracle.study.imitation import table
from data.oracle.truth.optimum import masked, measure, regret, tilt
from data.oracle.truth.population import PopulationLoss, minimise
from data.oracle.world import oracle_world
from lit_safe.objectives import DPO, ConstrainedDPO, SafeDPO, SafetyOffsetDPO
from lit_safe.objectives.bradley_terry import nll
from lit_safe.types import Annotation, Pair, Scored

BETA = 0.5


class Tables(NamedTuple):
    reference_PK: np.ndarray
    reward_PK: np.ndarray
    cost_PKC: np.ndarray


def tables(seed: int = 0, prompts: int = 3, cells: int = 8, constraints: int = 1) -> Tables:
    draw = np.random.default_rng(seed)
    reference_PK = log_softmax(2 * draw.normal(size=(prompts, cells)), -1)
    return Tables(reference_PK, draw.normal(size=(prompts, cells)), draw.normal(size=(prompts, cells, constraints)))


def two_responses(gap: float) -> Tables:
    """One prompt; the first response is more helpful by ``gap`` nats, and the two are equally likely."""
    return Tables(np.log([[0.5, 0.5]]), np.array([[gap, 0.0]]), np.zeros((1, 2, 1)))


@dataclass(frozen=True)
class RobustDPO:
    """DPO unbiased under flips (Chowdhury et al. 2024, arXiv:2403.00409, eq. 12)."""

    flip: float
    beta: float = BETA
    needs = ()
    reads_multiplier = False

    def __call__(self, logratio: Pair, label: Annotation, multiplier: torch.Tensor) -> Scored:
        loss_B = nll(self.beta * logratio.margin, (1 - self.flip) / (1 - 2 * self.flip))
        return Scored(loss_B, torch.ones_like(loss_B))


@dataclass(frozen=True)
class Absolute:
    """A loss of each log-ratio by itself: it is not invariant to a shift, and least at 0.3 and -0.2."""

    beta: float = BETA
    needs = ()
    reads_multiplier = False

    def __call__(self, logratio: Pair, label: Annotation, multiplier: torch.Tensor) -> Scored:
        loss_B = (logratio.chosen - 0.3) ** 2 + (logratio.rejected + 0.2).cosh() + logratio.chosen * logratio.rejected
        return Scored(loss_B, torch.ones_like(loss_B))


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 3), st.floats(0, 3))
def test_dpo_and_constrained_dpo_are_least_at_their_tilt(seed: int, beta: float, multiplier: float) -> None:
    world = tables(seed)
    found = minimise(DPO(beta), *world)
    assert found.logp_PK == pytest.approx(tilt(*world, 0, beta), abs=1e-6)
    assert not found.diverges
    found = minimise(ConstrainedDPO(beta), *world, multiplier)
    assert found.logp_PK == pytest.approx(tilt(*world, multiplier, beta), abs=1e-6)
    assert found.gradient < 1e-12


def test_rectified_constrained_dpo_is_least_at_the_tilt_by_positive_costs() -> None:
    world = tables(constraints=2)
    found = minimise(ConstrainedDPO(BETA, rectify=True), *world, [0.3, 0.9])
    positive = world._replace(cost_PKC=np.maximum(world.cost_PKC, 0))
    assert found.logp_PK == pytest.approx(tilt(*positive, [0.3, 0.9], BETA), abs=1e-6)
    assert not np.allclose(found.logp_PK, tilt(*world, [0.3, 0.9], BETA), atol=1e-2)


def test_each_constraint_has_a_multiplier_of_its_own() -> None:
    world = tables(constraints=2)
    found = minimise(ConstrainedDPO(BETA), *world, [0.3, 0.9])
    assert found.logp_PK == pytest.approx(tilt(*world, [0.3, 0.9], BETA), abs=1e-6)


def test_the_loss_is_the_one_that_pairs_drawn_at_random_have_on_average() -> None:
    world, draw = tables(prompts=1, cells=4), np.random.default_rng(5)
    logratio_K, flip, count = torch.tensor([0.5, -1.0, 0.2, 1.4], dtype=torch.float64), 0.2, 200_000
    pairs = draw.choice(4, (count, 2), p=np.exp(world.reference_PK[0]))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    reward_K = world.reward_PK[0]
    in_order = draw.random(len(pairs)) < expit(reward_K[pairs[:, 0]] - reward_K[pairs[:, 1]])
    in_order ^= draw.random(len(pairs)) < flip
    pairs = np.where(in_order[:, None], pairs, pairs[:, ::-1])
    sides = [
        Pair(table[pairs[:, 0]], table[pairs[:, 1]]) for table in map(torch.as_tensor, (reward_K, world.cost_PKC[0]))
    ]
    scored = SafeDPO(BETA, 1.0)(Pair(*logratio_K[pairs.T]), Annotation(*sides), torch.zeros(()))
    loss_B = scored.loss * scored.weight
    exact = PopulationLoss(SafeDPO(BETA, 1.0), *(table[0] for table in world), torch.zeros(()), flip, 0)
    assert float(exact(logratio_K)) == pytest.approx(
        float(loss_B.mean()), abs=4 * float(loss_B.std()) / math.sqrt(len(loss_B))
    )


@pytest.mark.parametrize("objective", [DPO(BETA, 0.1), ConstrainedDPO(BETA), SafeDPO(BETA, 1.0), Absolute()], ids=repr)
def test_the_derivatives_are_those_of_the_loss(objective) -> None:
    world = tables(prompts=1, cells=5)
    loss = PopulationLoss(objective, *(table[0] for table in world), torch.tensor(0.7, dtype=torch.float64), 0.1, 0)
    logratio_K = torch.tensor([0.5, -1.0, 0.2, 1.4, 0.0], dtype=torch.float64)
    gradient_K, hessian_KK = loss.derivatives(logratio_K)
    torch.testing.assert_close(gradient_K, jacobian(loss, logratio_K))
    torch.testing.assert_close(hessian_KK, hessian(loss, logratio_K))


def test_an_objective_that_fixes_the_shift_too_is_minimised_all_the_same() -> None:
    found = minimise(Absolute(), *two_responses(0.0))
    assert found.gradient < 1e-12
    assert not found.diverges


def test_flipped_labels_shrink_what_dpo_learns_of_two_responses() -> None:
    # chosen is the better one with probability (1 - 2 flip) p + flip, p = 3/4: .6 * .75 + .2 = .65
    found = minimise(DPO(BETA), *two_responses(math.log(3)), flip=0.2)
    assert np.diff(found.logp_PK)[0] == pytest.approx(-logit(0.65) / BETA)
    assert np.exp(minimise(DPO(BETA), *two_responses(9.0), flip=0.5).logp_PK) == pytest.approx(np.array([[0.5, 0.5]]))


@settings(max_examples=10)
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.4))
def test_under_flips_dpo_stays_closer_to_the_reference_and_robust_dpo_returns_to_the_optimum(
    seed: int, flip: float
) -> None:
    world = tables(seed)
    optimum_PK = tilt(*world, 0, BETA)
    misled = minimise(DPO(BETA), *world, flip=flip)
    assert (np.ptp(misled.logp_PK - world.reference_PK, -1) < np.ptp(optimum_PK - world.reference_PK, -1)).all()
    assert not misled.diverges
    robust = minimise(RobustDPO(flip), *world, flip=flip)
    assert robust.logp_PK == pytest.approx(optimum_PK, abs=1e-6)


def test_label_smoothing_teaches_what_flips_teach() -> None:
    world = tables()
    smoothed, flipped = minimise(DPO(BETA, 0.2), *world), minimise(DPO(BETA), *world, flip=0.2)
    assert smoothed.logp_PK == pytest.approx(flipped.logp_PK, abs=1e-9)


def test_soft_labels_do_not_see_the_recorded_order() -> None:
    world = tables()
    clean, flipped = (minimise(ConstrainedDPO(BETA), *world, 0.7, flip=flip) for flip in (0.0, 0.3))
    assert flipped.logp_PK == pytest.approx(clean.logp_PK, abs=1e-9)


def test_sampled_labels_agree_with_soft_ones_the_better_the_more_coins_are_tossed() -> None:
    world = tables(prompts=1)
    objective = ConstrainedDPO(BETA, labels="sampled")
    optimum_PK = tilt(*world, 0.7, BETA)
    found = [minimise(objective, *world, 0.7, draws=draws) for draws in (5, 200)]
    shares = [regret(each.logp_PK, optimum_PK, world.reference_PK, BETA).share for each in found]
    assert shares[1] < shares[0] / 100  # the regret falls with the square of 40
    # the loss is linear in the label with slope beta * margin, and the label is off by half a part at most
    logratio_K = torch.linspace(-1, 1, 8, dtype=torch.float64)
    alone, multiplier = [table[0] for table in world], torch.tensor(0.7, dtype=torch.float64)
    soft = PopulationLoss(ConstrainedDPO(BETA), *alone, multiplier, 0.0, 0)(logratio_K)
    for draws in (5, 200):
        sampled = PopulationLoss(objective, *alone, multiplier, 0.0, draws)(logratio_K)
        assert float(sampled) == pytest.approx(float(soft), abs=BETA * 2 / (2 * draws))
    with pytest.raises(ValueError, match=r"needs Annotation\.draw"):
        minimise(objective, *world, 0.7)


def test_hard_labels_drift_apart_for_good() -> None:
    world = tables()
    hard = ConstrainedDPO(BETA, labels="hard")
    shorter, longer = (minimise(hard, *world, 0.7, iterations=iterations) for iterations in (10, 20))
    assert shorter.diverges_P.all()
    assert longer.diverges_P.all()
    assert (np.ptp(longer.logp_PK, -1) > np.ptp(shorter.logp_PK, -1) + 5).all()


def test_safe_dpo_closes_in_on_the_masked_optimum_and_never_stops_leaving_the_unsafe() -> None:
    world = tables()
    world.cost_PKC[0] = -1  # nothing to flee from here
    optimum_PK = masked(*world, BETA)
    found = [minimise(SafeDPO(BETA, 2.0), *world, iterations=iterations) for iterations in (5, 10, 20)]
    assert all(each.diverges_P.tolist() == [False, True, True] for each in found)
    unsafe = [measure(each.logp_PK, *world).unsafe for each in found]
    assert unsafe[0] > 100 * unsafe[1] > 10_000 * unsafe[2] > 0
    nats = [regret(each.logp_PK, optimum_PK, world.reference_PK, BETA).nats for each in found]
    assert nats[0] > nats[1] > nats[2]
    safe_PK = (world.cost_PKC <= 0).all(-1)
    assert found[2].logp_PK[safe_PK] == pytest.approx(optimum_PK[safe_PK], abs=1e-6)


def test_without_an_offset_safe_dpo_has_the_same_optimum() -> None:
    world = tables()
    found, with_offset = (minimise(SafeDPO(BETA, offset), *world, iterations=20).logp_PK for offset in (0.0, 2.0))
    safe_PK = (world.cost_PKC <= 0).all(-1)
    assert found[safe_PK] == pytest.approx(masked(*world, BETA)[safe_PK], abs=1e-6)  # Kim et al. 2025, proposition 4.4
    assert found[safe_PK] == pytest.approx(with_offset[safe_PK], abs=1e-6)


def test_the_offset_without_the_transform_is_a_price_of_unsafe_responses_and_keeps_them() -> None:
    world = tables()
    unsafe_PKC = 1.0 * (world.cost_PKC > 0)
    found = minimise(SafetyOffsetDPO(BETA, 2.0), *world)
    assert not found.diverges
    assert found.logp_PK == pytest.approx(tilt(world.reference_PK, world.reward_PK, unsafe_PKC, 2.0, BETA), abs=1e-8)
    assert measure(found.logp_PK, *world).unsafe > 1e-3


def test_a_prompt_whose_responses_are_all_unsafe_teaches_safe_dpo_nothing() -> None:
    world = tables()
    world.cost_PKC[1] = 1
    found = minimise(SafeDPO(BETA), *world)
    assert found.logp_PK[1] == pytest.approx(world.reference_PK[1])
    assert found.diverges_P.tolist() == [True, False, True]


def test_a_response_that_the_reference_never_gives_is_never_learnt() -> None:
    world = tables()
    world.reference_PK[:, 2] = -np.inf
    world = world._replace(reference_PK=log_softmax(world.reference_PK, -1))
    found = minimise(DPO(BETA), *world)
    assert (found.logp_PK[:, 2] == -np.inf).all()
    assert np.exp(found.logp_PK) == pytest.approx(np.exp(tilt(*world, 0, BETA)), abs=1e-9)
    alone = world._replace(reference_PK=np.where(np.arange(8) == 3, 0.0, -np.inf) + np.zeros((3, 1)))
    assert (minimise(DPO(BETA), *alone).logp_PK == alone.reference_PK).all()


def test_prompts_do_not_see_each_other() -> None:
    world = tables()
    together = minimise(DPO(BETA), *world)
    alone = minimise(DPO(BETA), *(table[1:2] for table in world))
    assert alone.logp_PK == pytest.approx(together.logp_PK[1:2], abs=1e-12)
    lifted = minimise(DPO(BETA), *world._replace(reward_PK=world.reward_PK + np.arange(3.0)[:, None]))
    assert lifted.logp_PK == pytest.approx(together.logp_PK, abs=1e-9)


def test_a_rare_response_is_learnt_as_exactly_as_a_common_one() -> None:
    world = tables()
    world.reference_PK[:, -1] -= 40  # malformed text in one of 10^17 answers
    world = world._replace(reference_PK=log_softmax(world.reference_PK, -1))
    assert minimise(DPO(BETA), *world).logp_PK == pytest.approx(tilt(*world, 0, BETA), abs=1e-6)


def test_an_unknown_label_is_refused_by_its_prompt_where_the_objective_looks_at_it() -> None:
    world = tables()
    world.cost_PKC[1, 3] = np.nan
    with pytest.raises(ValueError, match="loss of prompt 1 is not finite"):
        minimise(ConstrainedDPO(BETA), *world, 0.7)
    assert minimise(DPO(BETA), *world).logp_PK == pytest.approx(tilt(*tables(), 0, BETA), abs=1e-6)


@pytest.mark.slow
def test_a_world_of_full_size_is_minimised_in_seconds() -> None:
    world = tables(prompts=8, cells=489)
    assert minimise(DPO(beta=1.0), *world).logp_PK == pytest.approx(tilt(*world, 0, 1.0), abs=1e-6)


def test_imitation_has_the_derivatives_of_its_definition() -> None:
    world = tables()
    imitation_K = np.linspace(0.1, 0.5, 8)
    loss = PopulationLoss(DPO(BETA), *(table[0] for table in world), torch.tensor(0.0), 0.0, 0, imitation_K)
    at_K = torch.linspace(-1, 1, 8, dtype=torch.float64)
    gradient_K, hessian_KK = loss.derivatives(at_K.clone())
    torch.testing.assert_close(gradient_K, jacobian(loss, at_K))
    torch.testing.assert_close(hessian_KK, hessian(loss, at_K))


def test_imitation_of_two_responses_by_hand() -> None:
    """Equally likely before, one better by g: minus sigma(g) log sigma(x) minus sigma(-g) log sigma(-x), twice."""
    gap, weight = 1.0, 0.7
    found = minimise(DPO(1.0), *two_responses(gap), imitation_PK=np.full((1, 2), weight))
    # both terms are cross-entropies of the same x, the difference of log-probs: neither moves the other's minimum
    assert np.diff(found.logp_PK[:, ::-1]).item() == pytest.approx(gap, abs=1e-8)
    sharper = minimise(DPO(0.5), *two_responses(gap), imitation_PK=np.full((1, 2), weight))
    x = np.diff(sharper.logp_PK[:, ::-1]).item()
    slope = 0.5 * (expit(0.5 * x) - expit(gap)) + weight * (expit(x) - expit(gap))
    assert slope == pytest.approx(0, abs=1e-9)
    assert gap < x < gap / 0.5  # between what imitation and what DPO would have


def test_imitation_raises_what_the_objective_prefers() -> None:
    """SafeDPO prefers the safe response of a pair, although the other one helps more."""
    world = Tables(np.log([[0.5, 0.5]]), np.array([[2.0, 0.0]]), np.array([[[1.0], [-1.0]]]))
    loss = PopulationLoss(SafeDPO(1.0), *(table[0] for table in world), torch.tensor(0.0), 0.0, 2, np.ones(2))
    assert loss.pull_K is not None
    assert loss.pull_K.tolist() == pytest.approx([0.0, 1.0])


def test_the_table_of_imitation_sets_each_minimiser_beside_its_aim() -> None:
    world = oracle_world(2)
    reference_PK = np.log(0.99 * world.author_PK[:, :-1])
    reference_PK = np.concatenate([reference_PK, np.log(np.full((2, 1), 0.01))], axis=1)
    lines = table(reference_PK, ["dpo_soft"], [0.1])
    aim, moved = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:])
    assert (aim[1], aim[-1]) == ("aim", "0.00")
    assert float(moved[2]) < float(aim[2])  # imitation of the reference's own responses costs reward
    assert 0 < float(moved[-1]) < 5
