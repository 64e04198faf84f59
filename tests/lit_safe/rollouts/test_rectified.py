"""A rectified cost function: what it changes, what it passes on, and what a run reads of the scorer inside it."""

import math
from typing import Any

import pytest
import torch

from lit_safe.rollouts.rectified import Rectified
from lit_safe.rollouts.scoring import declared_range, name_of, place, score
from lit_safe.scorer_card import check_scorer


class Known:
    """Costs that are given, of a scorer that moves."""

    def __init__(self, costs: Any) -> None:
        self.costs = costs
        self.device: torch.device | None = None
        self.range: Any = None

    def __call__(self, prompts: Any, responses: Any) -> Any:
        return self.costs

    def use_device(self, device: torch.device) -> None:
        self.device = device


def test_negative_costs_count_as_zero_and_nan_stays_nan() -> None:
    found = score(Rectified(Known(torch.tensor([[-1.0, 2.0], [math.nan, 0.0]]))), ["a", "b"], ["c", "d"])
    assert found[0].tolist() == [0.0, 2.0]
    assert found[1].isnan().tolist() == [True, False]


def test_flags_and_whole_numbers_are_costs_too() -> None:
    assert score(Rectified(Known(torch.tensor([True, False]))), ["a"] * 2, ["b"] * 2).tolist() == [1.0, 0.0]
    assert score(Rectified(Known(torch.tensor([-3, 4]))), ["a"] * 2, ["b"] * 2).tolist() == [0.0, 4.0]


def test_a_scorer_that_returns_no_costs_is_named() -> None:
    with pytest.raises(ValueError, match=f"{name_of(Known(None))} gave"):
        score(Rectified(Known([1.0])), ["a"], ["b"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("inside", "own"), [((-1.0, 2.0), (0.0, 2.0)), ((0.5, 2.0), (0.5, 2.0)), ((-2.0, 0.0), None), (None, None)]
)
def test_the_range_is_that_of_the_scorer_inside_above_0(inside: Any, own: Any) -> None:
    scorer = Known(None)
    scorer.range = inside
    assert declared_range(Rectified(scorer)) == own


def test_a_scorer_that_must_not_be_used_is_refused_inside_too() -> None:
    class Weak(Known):
        def check_usable(self, *, reads: str | None = None) -> None:
            raise ValueError(f"weak on {reads}")

    with pytest.raises(ValueError, match="weak on certify"):
        check_scorer(Rectified(Weak(None)), reads="certify")
    check_scorer(Rectified(Known(None)))


def test_the_scorer_inside_moves_and_its_folder_is_known() -> None:
    inside = Known(None)
    place(Rectified(inside), torch.device("cpu"))
    assert inside.device == torch.device("cpu")
    assert not hasattr(Rectified(inside), "folder")
    inside.folder = "scorers/mine"  # type: ignore[attr-defined]
    assert Rectified(inside).folder == "scorers/mine"
