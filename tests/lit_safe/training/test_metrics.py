"""Logged means are means over pairs, whatever the cut into batches."""

import pytest
import torch

from lit_safe.training.metrics import PAIR_NAMES, Means, better, pair_quantities
from lit_safe.types import Annotation, Measured, PackedBatch, PackedSequences, Pair, Scored
from tests.lit_safe.waits import Operations, Waits


def batch(chosen_cost: list[float], rejected_cost: list[float], present: list[bool]) -> PackedBatch:
    count = len(present)
    empty = torch.zeros(0, dtype=torch.int64)
    ids = torch.arange(count)
    lengths = Pair(torch.full((count,), 4), torch.full((count,), 2))
    cost = Pair(torch.tensor(chosen_cost), torch.tensor(rejected_cost))
    label = Annotation(Pair(torch.zeros(count), torch.zeros(count)), cost)
    sequences = PackedSequences(empty, empty, empty, torch.zeros(2 * count + 1, dtype=torch.int32))
    return PackedBatch(sequences, label, ids, ids, lengths, torch.tensor(present), torch.tensor(count))


def test_a_tie_counts_one_half() -> None:
    assert better(torch.tensor([2.0, 0.0, -1.0])).tolist() == [1.0, 0.5, 0.0]


def test_quantities_by_hand() -> None:
    b = batch([-1.0, 1.0, 1.0], [1.0, -1.0, 1.0], [True, True, True])
    policy = Pair(torch.tensor([-8.0, -4.0, -2.0]), torch.tensor([-6.0, -6.0, -2.0]))
    logratio = Pair(torch.tensor([1.0, 2.0, 0.0]), torch.tensor([0.0, 3.0, 0.0]))
    scored = Scored(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([1.0, 1.0, 0.0]))
    means = Means(PAIR_NAMES)
    means.update(pair_quantities(b, policy, logratio, scored, beta=0.5))
    got = {name: round(float(value), 4) for name, value in means.compute().items()}
    assert got["loss"] == 1.5  # (1 + 2) / 2: the mean is over kept pairs
    assert got["rewards/chosen"] == 0.5
    assert got["rewards/margins"] == 0.0
    assert got["rewards/accuracies"] == 0.5  # right, wrong, tie
    assert got["rewards/accuracies/safer"] == 1.0  # the safe response gained in both mixed pairs
    assert got["rewards/accuracies/unsafe_unsafe"] == 0.5
    assert got["logps/accuracies"] == 0.5  # -8 < -6, -4 > -6, tie
    assert got["logps/accuracies_per_token"] == 1.0  # -2 > -3, -1 > -3, -.5 > -1
    assert got["pairs/dropped"] == 0.3333
    assert got["pairs/safe_unsafe"] == 0.6667
    assert "rewards/accuracies/safe_safe" not in got  # nothing was seen of it


def test_a_filler_row_counts_for_nothing() -> None:
    policy, logratio = (Pair(torch.tensor([1.0, 50.0]), torch.tensor([0.0, -50.0])) for _ in range(2))
    scored = Scored(torch.tensor([1.0, float("nan")]), torch.ones(2))
    with_filler, alone = Means(PAIR_NAMES), Means(PAIR_NAMES)
    with_filler.update(pair_quantities(batch([-1, 1], [1, 1], [True, False]), policy, logratio, scored, 0.1))
    first = [Pair(*(side[:1] for side in p)) for p in (policy, logratio)]
    alone.update(pair_quantities(batch([-1], [1], [True]), *first, Scored(*(t[:1] for t in scored)), 0.1))
    assert with_filler.compute() == alone.compute()


def test_unequal_batches_give_the_mean_over_pairs() -> None:
    means = Means(["x"])
    means.update({"x": Measured(torch.tensor([1.0, 1.0, 1.0]), torch.ones(3, dtype=torch.bool))})
    means.update({"x": Measured(torch.tensor([5.0]), torch.ones(1, dtype=torch.bool))})
    assert means.compute()["x"] == 2.0


def test_a_window_survives_its_state_dict() -> None:
    one, two = Means(["x"]), Means(["x"])
    one.update({"x": Measured(torch.tensor([1.0, 4.0]), torch.tensor([True, True]))})
    two.load_state_dict(one.state_dict())
    two.update({"x": Measured(torch.tensor([7.0]), torch.tensor([True]))})
    assert two.compute()["x"] == 4.0


def test_a_mean_takes_weights_and_looks_at_nothing_of_weight_0() -> None:
    means = Means(["x"])
    value, weight = torch.tensor([1.0, 5.0, float("nan")]), torch.tensor([3.0, 1.0, 0.0])
    means.update({"x": Measured(value, weight)})
    assert means.compute()["x"] == 2.0
    assert [part.tolist() for part in Measured(value, weight).pooled()] == [[2.0], [4.0]]
    assert Measured(value[:0], weight[:0]).pooled().weight.tolist() == [0.0]


@pytest.mark.parametrize("names", [["x"], ["x", "y", "z"]])
def test_a_name_too_few_or_too_many_is_refused(names: list[str]) -> None:
    one = Measured(torch.ones(1), torch.ones(1))
    with pytest.raises(KeyError, match="the means are of"):
        Means(["x", "y"]).update(dict.fromkeys(names, one))


def test_sums_are_float32_where_the_device_has_no_float64() -> None:
    def to_apple(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        return tensor

    means = Means(["x"])
    means.update({"x": Measured(torch.tensor([1.0, 2.0]), torch.ones(2))})
    means._apply(to_apple)
    means.update({"x": Measured(torch.tensor([6.0]), torch.ones(1))})
    assert means.compute()["x"] == 3.0
    means.reset()
    assert means.total.dtype == torch.float32


def test_all_means_of_a_micro_batch_take_few_operations_and_no_wait() -> None:
    b = batch([-1.0, 1.0], [1.0, 1.0], [True, True])
    policy = Pair(*(torch.tensor([-8.0, -4.0], requires_grad=True) * 1 for _ in range(2)))
    scored = Scored(policy.margin, torch.ones(2))
    means = Means(PAIR_NAMES)
    with Operations() as operations, Waits() as waits:
        means.update(pair_quantities(b, policy, policy, scored, beta=0.5))
    assert sum(operations.seen.values()) <= 60, operations.seen
    assert not waits.seen


def test_a_pair_with_an_unknown_cost_is_in_no_stratum() -> None:
    b = batch([float("nan")], [1.0], [True])
    zero = Pair(torch.zeros(1), torch.zeros(1))
    measured = pair_quantities(b, zero, zero, Scored(torch.ones(1), torch.ones(1)), 0.1)
    assert not any(measured[f"pairs/{s}"].weight.any() for s in ("safe_safe", "safe_unsafe", "unsafe_unsafe"))
