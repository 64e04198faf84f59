"""What holds for every objective: the protocol, what it reads, what it keeps, its derivatives and far values."""

import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.oracle.truth.population import minimise
from lit_safe import objectives
from lit_safe.objectives import (
    BFPO,
    CPO,
    DPO,
    IPO,
    KTO,
    MODPO,
    ORPO,
    SACPO,
    BothOrders,
    ConstrainedDPO,
    Hinge,
    LengthNormalisedDPO,
    RobustDPO,
    SafeDAA,
    SafeDPO,
    SafetyOffsetDPO,
    SafetyPenaltyDPO,
    SimPO,
)
from lit_safe.protocols.objective import extra_needs, is_reference_free, label_needs, score
from lit_safe.types import Annotation, Extra, Objective, Pair, Scored, Selective
from tests.lit_safe.objective_world import ZERO, check_derivatives, f64, world

ALL = [
    DPO(),
    DPO(label_smoothing=0.1),
    ConstrainedDPO(),
    ConstrainedDPO(labels="sampled"),
    ConstrainedDPO(rectify=True),
    SafeDPO(),
    SafeDPO(labels="soft"),
    SACPO(),
    SACPO(labels="soft"),
    SafetyPenaltyDPO(),
    SafetyOffsetDPO(offset=1.0),
    *(SafeDAA(offset=1.0, link=link) for link in ("logistic", "square", "hinge")),
    IPO(),
    IPO(average=True),
    RobustDPO(),
    Hinge(),
    BFPO(),
    MODPO(),
    MODPO(score="reward", link="hinge"),
    LengthNormalisedDPO(),
    SimPO(),
    CPO(),
    CPO(average_nll=False),
    ORPO(),
    KTO(),
    KTO(desirable="safe"),
    BothOrders(IPO(average=True), flip_rate=0.1),
    BothOrders(SafeDPO()),
]
finite = st.floats(-50, 50)
VALUE = Pair(f64(-8.0, -9.0, -7.5), f64(-8.5, -8.0, -8.0))
EXTRA = Extra(policy_logp=VALUE, length=Pair(f64(2.0, 3.0, 2.0), f64(3.0, 2.0, 4.0)), mismatched_logratio=f64(0.2)[0])


def called(objective: Objective, label: Annotation, multiplier: float = 1.0, extra: Extra = EXTRA) -> Scored:
    return score(objective, VALUE, VALUE, label, f64(multiplier)[0], extra)


def test_none_is_left_out() -> None:
    assert {type(one).__name__ for one in ALL} == set(objectives.__all__)


@pytest.mark.parametrize("objective", ALL, ids=repr)
def test_it_meets_the_protocol_and_takes_what_it_needs(objective: Objective) -> None:
    assert isinstance(objective, Objective)
    takes = inspect.signature(type(objective).__call__).parameters
    assert ("extra" in takes) or not extra_needs(objective)


@pytest.mark.parametrize("objective", ALL, ids=repr)
def test_it_reads_what_it_declares_and_nothing_else(objective: Objective) -> None:
    costs = [[-2.0, -0.5], [-2.0, 0.5], [2.0, -0.5]]
    cost = Pair(*(f64(*side) for side in zip(*costs, strict=True)))
    first = Annotation(Pair(f64(1.0, 2.0, 0.5), f64(0.0, 2.5, 0.0)), cost, f64(0.5, 0.5, 0.5))

    def changed(label: Annotation = first, multiplier: float = 1.0, extra: Extra = EXTRA) -> bool:
        before, after = called(objective, first), called(objective, label, multiplier, extra)
        return not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))

    sizes = first._replace(cost=Pair(*(side / 10 for side in first.cost)))  # no sign changes
    signs = first._replace(cost=Pair(*(-side for side in first.cost)))
    rewards = first._replace(reward=Pair(first.reward.chosen - 9, first.reward.rejected))
    assert changed(multiplier=0.0) is objective.reads_multiplier
    assert changed(rewards) is ("reward" in label_needs(objective))
    assert changed(sizes) is ("cost" in label_needs(objective))
    assert changed(signs) is bool({"cost", "flags"} & set(label_needs(objective)))
    longer = Pair(EXTRA["length"].chosen + 1, EXTRA["length"].rejected)
    assert changed(extra=Extra(**{**EXTRA, "length": longer})) is ("length" in extra_needs(objective))
    further = Extra(**{**EXTRA, "mismatched_logratio": f64(0.9)[0]})
    assert changed(extra=further) is ("mismatched_logratio" in extra_needs(objective))


@pytest.mark.parametrize("objective", ALL, ids=repr)
@given(costs=st.lists(st.tuples(finite, finite), min_size=1), margin=finite)
def test_what_it_keeps_is_what_has_a_weight(
    objective: Objective, costs: list[tuple[float, float]], margin: float
) -> None:
    cost = Pair(*(f64(*side) for side in zip(*costs, strict=True)))
    one, zero = torch.ones_like(cost.chosen), torch.zeros_like(cost.chosen)
    label = Annotation(Pair(one, zero), cost, one / 2)
    value, extra = Pair(zero + margin - 60, zero - 60), Extra(length=Pair(one, one), mismatched_logratio=ZERO)
    weighs = score(objective, value, value, label, ZERO, extra).weight > 0
    assert torch.equal(weighs, objective.keeps(label) if isinstance(objective, Selective) else torch.ones_like(weighs))


@pytest.mark.parametrize("objective", ALL, ids=repr)
def test_derivatives_agree_with_finite_differences(objective: Objective) -> None:
    check_derivatives(objective)


@pytest.mark.parametrize("objective", ALL, ids=repr)
@pytest.mark.parametrize("values", [(1e5, 0.0), (-1e5, 0.0)])
def test_far_log_ratios_stay_finite_in_fp32(objective: Objective, values: tuple[float, float]) -> None:
    label = Annotation(*(Pair(torch.tensor([1.0]), torch.tensor([-1.0])) for _ in range(2)), torch.tensor([0.5]))
    far = values if not is_reference_free(objective) or values[0] < 0 else (0.0, -1e5)  # no log-prob is positive
    value = Pair(*(torch.tensor([side], requires_grad=True) for side in far))
    extra = Extra(length=Pair(torch.ones(1), torch.ones(1)), mismatched_logratio=torch.tensor(0.0))
    loss = score(objective, value, value, label, torch.tensor(0.5), extra).loss.sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert all(side.grad is None or torch.isfinite(side.grad).all() for side in value)


@pytest.mark.parametrize("objective", [one for one in ALL if extra_needs(one)], ids=repr)
def test_the_oracle_refuses_an_objective_whose_population_minimiser_it_does_not_have(objective: Objective) -> None:
    of = world()
    tables = of.reference[None].numpy(), of.reward[None].numpy(), of.cost[None, :, None].numpy()
    with pytest.raises(ValueError, match=f"optimum: population .* {type(objective).__name__} also reads"):
        minimise(objective, *tables)
