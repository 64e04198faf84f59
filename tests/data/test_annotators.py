import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.annotators.flags import Flags
from data.annotators.scores import Score, Scores
from data.annotators.severity import Severity
from data.schema import Annotator, BadRow, Response, Row

MARGINS = st.floats(-50, 50)


def row(first: Response, second: Response, better: int | None = None) -> Row:
    return Row("set:1", "prompt", (first, second), better)


def test_a_flag_costs_plus_or_minus_the_scale() -> None:
    pair = row(Response("a", safe=True), Response("b", safe=False))
    assert Flags(scale=3.0).costs(pair) == ((-3.0,), (3.0,))
    assert Flags(scale=2.0, threshold=0.5).costs(pair) == ((-3.0,), (1.0,))


@given(st.floats(-0.999, 0.999), st.floats(0.01, 100))
def test_no_threshold_or_scale_changes_what_a_flag_says(threshold: float, scale: float) -> None:
    (safe,), (unsafe,) = Flags(scale, threshold).costs(row(Response("a", safe=True), Response("b", safe=False)))
    assert safe <= 0 < unsafe


def test_severity_at_the_threshold_is_safe_and_beyond_it_is_not() -> None:
    pair = row(Response("a", severity=1.0), Response("b", severity=3.0))
    assert Severity(threshold=1.0, scale=2.0).costs(pair) == ((0.0,), (4.0,))


def test_what_the_row_does_not_say_is_nan() -> None:
    pair = row(Response("a"), Response("b", safe=False, severity=1.0))
    for annotator in (Flags(), Severity()):
        assert math.isnan(annotator.costs(pair)[0][0])
        assert annotator.costs(pair)[1][0] > 0
        assert all(map(math.isnan, annotator.rewards(pair)))


@pytest.mark.parametrize("better", [0, 1])
def test_the_better_response_is_ahead_by_the_declared_strength(better: int) -> None:
    rewards = Severity(preference_strength=1.5).rewards(row(Response("a"), Response("b"), better))
    assert rewards[better] - rewards[1 - better] == 1.5
    assert sum(rewards) == 0
    assert all(map(math.isnan, Flags(preference_strength=None).rewards(row(Response("a"), Response("b"), better))))


def test_every_cost_column_is_a_constraint_with_its_own_threshold_scale_and_sign() -> None:
    low, high = {"toxic": 0.25, "care": 4.0, "help": 1.0}, {"toxic": 0.75, "care": 1.0, "help": 3.0}
    pair = row(Response("a", scores=low), Response("b", scores=high))
    scores = Scores(
        costs_from=(Score("toxic", threshold=0.5, scale=4.0), Score("care", threshold=2.0, invert=True)),
        reward_from=Score("help", scale=0.5),
    )
    assert scores.constraints == ("toxic", "care")
    assert scores.costs(pair) == ((-1.0, -2.0), (1.0, 1.0))
    assert scores.rewards(pair) == (0.5, 1.5)


@given(MARGINS, MARGINS, st.floats(-10, 10), st.floats(0.01, 10))
def test_inverting_a_column_turns_its_order_round_and_nothing_else_does(
    one: float, two: float, threshold: float, scale: float
) -> None:
    first, second = Response("a", scores={"s": one}), Response("b", scores={"s": two})
    straight, inverted = (Score("s", threshold, scale, invert) for invert in (False, True))
    pair = row(first, second)
    assert straight.of(pair, first) == -inverted.of(pair, first)
    assert (straight.of(pair, first) < straight.of(pair, second)) <= (one < two)


def test_a_row_without_the_column_is_named() -> None:
    scores = Scores(costs_from=(Score("toxic"),))
    with pytest.raises(BadRow, match=r"row set:1, column 'toxic': is null or missing"):
        scores.costs(row(Response("a", scores={"toxic": 1.0}), Response("b")))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Flags(scale=0.0),
        lambda: Flags(threshold=-1.0),
        lambda: Flags(preference_strength=0.0),
        lambda: Severity(threshold=math.nan),
        lambda: Severity(scale=math.inf),
        lambda: Score("a", scale=-1.0),
        lambda: Scores(costs_from=()),
        lambda: Scores(costs_from=(Score("a"), Score("a", invert=True))),
    ],
)
def test_units_that_mean_nothing_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="must"):
        make()


def test_an_annotator_meets_the_contract_and_prints_all_that_decides_its_numbers() -> None:
    for annotator in (Flags(), Severity(), Scores(costs_from=(Score("a"),))):
        assert isinstance(annotator, Annotator)
    assert repr(Flags(2.0)) == "Flags(scale=2.0, threshold=0.0, preference_strength=1.0, constraint='harm')"
