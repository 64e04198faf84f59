"""Certificates and the facts that scorers declare: ranges, units, and a second scorer beside the first."""

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from lit_safe.commands.certify import summary
from lit_safe.constraint.certificate.page import card_section
from lit_safe.errors.message import SettingError
from lit_safe.rollouts.rectified import Rectified
from tests.lit_safe.certify_world import Both, Declared, Left, Length, Loud, Share, lines, run

UNTYPED = {"cost_range": None, "units": None}


def test_a_declared_range_bounds_the_costs_as_the_typed_range_does(tmp_path):
    typed = run(tmp_path, name="typed")
    declared = run(tmp_path, name="declared", scorer=Declared(), **UNTYPED)
    assert declared["question"]["cost_range"] == [-1.0, 1.0]
    assert declared["findings"] == typed["findings"]
    assert (typed["scorer"]["range"], declared["scorer"]["range"]) == (None, [-1.0, 1.0])
    page = (tmp_path / "declared" / "certificate.md").read_text(encoding="utf-8")
    assert "Declared, in tenths of 40 characters; it declares costs from -1 to 1: " in page


def test_a_typed_range_replaces_the_declared_one_and_is_wider_or_ends_the_command(tmp_path):
    wide = run(tmp_path, scorer=Declared(), cost_range=[-2.0, 2.0])
    assert wide["question"]["cost_range"] == [-2.0, 2.0]
    narrow = run(tmp_path, name="narrow", scorer=Declared())
    found = [one["findings"]["cost"]["findings"]["cost"]["upper"] for one in (narrow, wide)]
    assert found[0] < found[1]


def test_a_cost_that_leaves_the_declared_range_is_one_error_with_its_row(tmp_path):
    with pytest.raises(
        ValueError, match=r"Left gave \[1\.5\] for a response to prompt \d+, outside the range \[-1, 1\]"
    ):
        run(tmp_path, scorer=Left(), **UNTYPED)
    assert lines(tmp_path)
    assert not (tmp_path / "run" / "certificate.json").exists()


def test_a_limit_outside_the_declared_range_ends_before_a_response_is_drawn(tmp_path):
    with pytest.raises(SettingError, match=r"the limit 3.0 is not in the cost_range \[-1.0, 1.0\]"):
        run(tmp_path, scorer=Declared(), limit=3.0, **UNTYPED)
    assert not (tmp_path / "run").joinpath("certificate_responses.jsonl").exists()


def test_a_rectified_scorer_costs_from_0_to_the_largest_cost_of_the_scorer_inside(tmp_path):
    found = run(tmp_path, scorer=Rectified(Declared()), **UNTYPED)
    assert found["question"]["cost_range"] == [0.0, 1.0]
    assert found["findings"]["clipped"] == 0


def test_a_second_scorer_with_the_units_of_the_limit_is_compared_within_its_own_range(tmp_path):
    found = run(tmp_path, second_scorer=Declared(), cost_range=[-4.0, 4.0])
    upper = found["findings"]["cost"]["findings"]["cost"]["upper"]
    assert found["second"]["not_compared"] == ""
    assert found["second"]["findings"]["cost"]["findings"]["cost"]["upper"] < upper


@pytest.mark.parametrize(
    ("second", "why"),
    [
        (Share(), "its costs are in share of 40 characters, and the limit is in tenths of 40 characters"),
        (Both(), "it gives 2 costs for a response, and the limits are of 1"),
    ],
)
def test_a_second_scorer_with_other_costs_is_named_and_not_compared_with_the_limit(tmp_path, second, why):
    found = run(tmp_path, second_scorer=second, unsafe_limit=0.9)
    assert found["second"]["not_compared"] == why
    assert found["second"]["findings"]["cost"] is None
    assert found["second"]["findings"]["unsafe"]["limit"] == 0.9  # a share has no units
    page = (tmp_path / "run" / "certificate.md").read_text(encoding="utf-8")
    assert f"- Second scorer {type(second).__name__}, in {second.units}" in page
    assert f"not compared with the limit: {why}." in page
    assert why in summary(found)


def test_a_second_scorer_without_units_is_not_compared_either(tmp_path):
    class Unnamed(Loud):
        units = None

    found = run(tmp_path, second_scorer=Unnamed())
    assert found["second"]["not_compared"].startswith("its costs are in units of Unnamed, and the limit is in tenths")
    assert found["second"]["verdict"] is None
    alone = run(tmp_path, name="share", limit=None, unsafe_limit=0.5, second_scorer=Unnamed())
    assert alone["second"]["not_compared"] == ""


def test_a_limit_outside_the_range_of_the_second_scorer_ends_before_a_response_is_drawn(tmp_path):
    class Narrow(Length):
        range = (-1.0, 0.5)

    with pytest.raises(SettingError, match=r"the limit 0.9 is not in the cost_range \[-1.0, 0.5\]"):
        run(tmp_path, second_scorer=Narrow())
    assert not (tmp_path / "run" / "certificate_responses.jsonl").exists()


def test_a_certificate_of_an_earlier_version_still_has_its_section_on_the_card(tmp_path):
    found = run(tmp_path, second_scorer=Loud())
    for scorer, key in (("scorer", "range"), ("second", "range"), ("second", "not_compared")):
        del found[scorer][key]
    assert "Second scorer Loud, in letters: " in card_section(found, found["policy"]["digest"])


class Given:
    """Costs that are given, with a range."""

    def __init__(self, costs: Any, ends: Any) -> None:
        self.costs, self.range = costs, ends

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Any:
        return torch.tensor(self.costs)


@pytest.mark.parametrize("ends", [(1.0, 0.0), (0.0, math.inf), 3.0, ("a", "b"), (0.0,)])
def test_a_range_that_is_none_is_refused_with_the_class_named(tmp_path, ends):
    with pytest.raises(ValueError, match=r"the range of the cost function Given is .*: it must be \(low, high\)"):
        run(tmp_path, scorer=Given([0.0], ends), units=None)


def test_the_values_are_plain_json(tmp_path):
    found = run(tmp_path, scorer=Declared(), second_scorer=Share(), **UNTYPED)
    assert json.loads(json.dumps(found)) == found
