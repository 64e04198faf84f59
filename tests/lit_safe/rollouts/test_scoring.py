"""What a cost function may give back, and that whatever else it gives is refused with its name."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lit_safe.constraint.costs.rollout import RolloutCost
from lit_safe.evaluation.evaluate import evaluate
from lit_safe.rollouts.scoring import score
from tests.lit_safe.dual_world import Table, Toy
from tests.lit_safe.held_out_world import HeldOut, module


class Gives:
    """A cost function that gives what it is told to make of the number of responses."""

    def __init__(self, made: Callable[[int], Any]) -> None:
        self.made = made

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Any:
        return self.made(len(responses))


WRONG: dict[str, tuple[Callable[[int], Any], str]] = {
    "a list": (lambda n: [0.0] * n, "gave a list, not a torch.Tensor"),
    "an array": (lambda n: np.zeros(n), "gave a ndarray, not a torch.Tensor"),
    "nothing": (lambda n: None, "gave a NoneType, not a torch.Tensor"),
    "one number for all": (lambda n: torch.tensor(0.0), r"gave costs of shape \[\] for"),
    "too few": (lambda n: torch.zeros(n + 1), r"gave \d costs of \d responses"),
    "three axes": (lambda n: torch.zeros(n, 1, 1), r"gave costs of shape \[\d, 1, 1\]"),
    "no constraint": (lambda n: torch.zeros(n, 0), r"gave costs of shape \[\d, 0\]"),
    "complex": (lambda n: torch.zeros(n, dtype=torch.complex64), "gave costs of type torch.complex64"),
    "not a number": (lambda n: torch.full((n,), float("nan")), "gave nan for"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_cost_is_refused_at_setup_and_in_every_pass_with_the_class_named(kind: str) -> None:
    cost, message = Gives(WRONG[kind][0]), f"the cost function Gives {WRONG[kind][1]}"
    with pytest.raises(ValueError, match=message):
        RolloutCost(cost).check(Toy(), 1)
    with pytest.raises(ValueError, match=message):
        RolloutCost(cost)(SimpleNamespace(pair=Table()), Toy(), seed=0, epoch=0)
    with pytest.raises(ValueError, match=message):
        evaluate(module(), HeldOut(), cost=cost, prompts=2)


def test_rows_that_change_their_length_within_a_pass_are_refused() -> None:
    widths = iter((1, 2, 2, 2))
    growing = Gives(lambda n: torch.zeros(n, next(widths)))
    with pytest.raises(ValueError, match=r"gave rows of \[2\] after rows of \[1\]"):
        RolloutCost(growing, batch_size=1)(SimpleNamespace(pair=Table()), Toy(), seed=0, epoch=0)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.bfloat16, torch.float64])
def test_integers_truths_and_any_float_are_costs(dtype: torch.dtype) -> None:
    found = score(Gives(lambda n: torch.tensor([0, 1, 1]).to(dtype)), ["p"] * 3, ["r"] * 3)
    assert found.tolist() == [0.0, 1.0, 1.0]
    assert found.dtype == torch.float64
    assert found.device.type == "cpu"


class Scorer(nn.Module):
    """A scorer with weights, which notes how it is run."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.seen: list[tuple[bool, bool, bool]] = []

    def forward(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        self.seen.append((self.training, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        return self.weight * torch.tensor([len(response) / 10 for response in responses])


def test_a_scorer_with_weights_is_evaluated_without_gradient_or_autocast_and_left_as_it_was() -> None:
    scorer = Scorer()
    with torch.autocast("cpu", torch.bfloat16):
        RolloutCost(scorer)(SimpleNamespace(pair=Table()), Toy(), seed=0, epoch=0)
        evaluate(module(), HeldOut(), cost=scorer, prompts=2)
        RolloutCost(scorer).check(Toy(), 1)
    assert set(scorer.seen) == {(False, False, False)}
    assert scorer.training
    assert not score(scorer, ["p"], ["r"]).requires_grad
