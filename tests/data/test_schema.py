import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.schema import (
    MAX_CHARACTERS,
    BadRow,
    Response,
    Row,
    check_choice,
    check_flag,
    check_number,
    check_text,
)

ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers()) | st.just({})


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "is null or missing"),
        (3, "is int, not text"),
        (["a"], "is list, not text"),
        (" \n\t", "is empty"),
        ("x" * (MAX_CHARACTERS + 1), "has over 100,000 characters"),
        ("ok \ud83d", "holds a lone surrogate"),
    ],
)
def test_a_text_that_cannot_be_used_is_named_with_its_fault(value: object, reason: str) -> None:
    with pytest.raises(BadRow) as caught:
        check_text("set:7", "prompt", value)
    assert str(caught.value) == f"row set:7, column 'prompt': {reason}"
    assert (caught.value.row, caught.value.column, caught.value.reason) == ("set:7", "prompt", reason)


def test_a_text_of_exactly_the_longest_length_is_kept() -> None:
    assert len(check_text("set:1", "prompt", "x" * MAX_CHARACTERS)) == MAX_CHARACTERS


@given(ANYTHING)
def test_a_number_is_finite_or_refused(value: object) -> None:
    try:
        number = check_number("set:1", "score", value)
    except BadRow:
        return
    assert math.isfinite(number)
    assert number == float(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400])
def test_what_no_float_can_hold_is_not_finite(value: float) -> None:
    with pytest.raises(BadRow, match="is not finite"):
        check_number("set:1", "score", value)


@given(ANYTHING)
def test_a_flag_and_a_choice_are_zero_or_one_and_nothing_else_is(value: object) -> None:
    exact = type(value) in (int, bool) and value in (0, 1)
    try:
        assert check_flag("set:1", "safe", value) == bool(value)
        assert exact
    except BadRow:
        assert not exact
    if type(value) is bool or not exact:
        with pytest.raises(BadRow):
            check_choice("set:1", "better", value)
    else:
        assert check_choice("set:1", "better", value) == value


@pytest.mark.parametrize("safer", [0, 1])
def test_a_row_whose_safer_response_is_flagged_unsafe_while_the_other_is_safe_is_refused(safer: int) -> None:
    responses = [Response("one", safe=True), Response("two", safe=True)]
    responses[safer] = Response("unsafe", safe=False)
    with pytest.raises(BadRow, match=r"row set:3, column 'safer': names the unsafe response"):
        Row("set:3", "prompt", (responses[0], responses[1]), safer=safer)
    Row("set:3", "prompt", (responses[0], responses[1]), safer=1 - safer)


def test_of_two_unsafe_responses_one_may_be_safer() -> None:
    both = Response("one", safe=False), Response("two", safe=False)
    assert Row("set:3", "prompt", both, safer=1).safer == 1
