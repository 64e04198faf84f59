"""From rows to pairs: order, duplicates, contradictions, caps, and the account of what was dropped."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.annotators.flags import Flags
from data.annotators.scores import Score, Scores
from data.preparation import Order, prepare
from data.report import PreparationReport
from data.schema import BadRow, Message, PreferenceRow, Response, Row


@dataclass
class Listed:
    """A source of the rows it is given."""

    rows: Sequence[Row | BadRow]
    evaluation_only: bool = False
    licence: str = "CC0"

    def describe(self) -> dict[str, str]:
        return {"name": "listed"}

    def __iter__(self) -> Iterator[Row | BadRow]:
        return iter(self.rows)


def pair(
    prompt: str = "p",
    texts: tuple[str, str] = ("a", "b"),
    safe: tuple[bool | None, bool | None] = (True, True),
    better: int | None = 0,
    safer: int | None = None,
    name: str = "r",
) -> Row:
    responses = Response(texts[0], safe[0]), Response(texts[1], safe[1])
    return Row(name, (Message("user", prompt),), responses, better, safer, "people")


def prepared(*rows: Row | BadRow, **options: Any) -> tuple[list[PreferenceRow], PreparationReport]:
    return prepare([Listed(rows)], Flags(), **options)


def reasons(report: PreparationReport) -> dict[str, int]:
    return {reason: dropped.count for reason, dropped in report.dropped.items()}


def test_labels_follow_their_response_whichever_is_chosen() -> None:
    ((row,), _) = prepared(pair(safe=(True, False), better=1))
    assert (row.chosen, row.rejected) == ("b", "a")
    assert (row.chosen_reward, row.rejected_reward) == (0.5, -0.5)
    assert (row.chosen_cost, row.rejected_cost) == ((1.0,), (-1.0,))
    assert (row.responses_from, row.id) == ("people", "r")


@pytest.mark.parametrize(
    ("order", "chosen"),
    [
        ("helpful", ["unsafe helpful", "safe helpful"]),
        ("safer", ["safe dull", "safer"]),
        ("safe_better", ["safe helpful"]),
        ("helpful_or_safer", ["unsafe helpful", "safe helpful", "safer"]),
    ],
)
def test_the_order_says_which_response_is_chosen_and_which_pairs_have_one(order: Order, chosen: list[str]) -> None:
    rows = [
        pair("1", ("unsafe helpful", "safe dull"), (False, True), better=0, safer=1),
        pair("2", ("safe helpful", "dull too"), better=0),
        pair("3", ("safer", "worse"), (False, False), better=None, safer=0),
    ]
    kept, report = prepared(*rows, order=order)
    assert [row.chosen for row in kept] == chosen
    assert report.read == 3 == report.kept + sum(reasons(report).values())
    assert report.ordered_by_safety == (order == "helpful_or_safer")


def test_without_a_stated_order_the_larger_reward_is_better_and_the_dominated_cost_safer() -> None:
    def scored(first: tuple[float, float, float], second: tuple[float, float, float]) -> Row:
        sides = (dict(zip(("r", "c", "d"), values, strict=True)) for values in (first, second))
        one, two = (Response(text, scores=scores) for text, scores in zip("ab", sides, strict=True))
        return Row("r", f"{first}{second}", (one, two))

    annotator = Scores(costs_from=(Score("c"), Score("d")), reward_from=Score("r"))
    rows = [
        scored((0, 1, 0), (1, 0, 0)),  # second better, second safer
        scored((2, 0, 1), (1, 1, 0)),  # first better, neither safer: each is worse in one cost
        scored((1, 0, 0), (1, 0, 1)),  # as good, first safer
    ]
    kept = {order: prepare([Listed(rows)], annotator, order)[0] for order in ("helpful", "safer")}  # type: ignore[arg-type]
    assert [row.chosen for row in kept["helpful"]] == ["b", "a"]
    assert [row.chosen for row in kept["safer"]] == ["b", "a"]
    assert [row.prompt for row in kept["safer"]] == [rows[0].prompt, rows[2].prompt]


def test_a_pair_that_returns_in_either_position_is_kept_once() -> None:
    mirrored = pair(texts=("b", "a"), better=1, name="mirrored")
    kept, report = prepared(pair(), pair(name="again"), mirrored, pair("another prompt"))
    assert len(kept) == 2
    assert reasons(report) == {"the pair appears in an earlier row": 2}
    assert report.dropped["the pair appears in an earlier row"].examples == ["again", "mirrored"]
    assert report.contradictory_orders == 0


@pytest.mark.parametrize(("option", "count"), [("keep", 2), ("drop", 1)])
def test_a_pair_in_both_orders_is_a_contradiction(option: str, count: int) -> None:
    rows = pair(better=0), pair(better=1), pair("other")
    kept, report = prepared(*rows, contradictions=option)
    assert (len(kept), report.contradictory_orders) == (count, 1)
    assert report.contradictory_rows == (option == "keep")


@pytest.mark.parametrize(("option", "count"), [("keep", 3), ("drop", 1)])
def test_a_text_both_safe_and_unsafe_after_one_prompt_is_a_contradiction(option: str, count: int) -> None:
    rows = [
        pair("C?", ("x", "y"), (True, True)),
        pair("C?", ("x", "z"), (False, True)),
        pair("C++?", ("x", "y"), (False, False)),  # another prompt: no contradiction
    ]
    kept, report = prepared(*rows, contradictions=option)
    assert (len(kept), report.contradictory_responses, report.contradictory_orders) == (count, 1, 0)


def test_a_row_without_an_order_still_bears_witness_to_its_labels() -> None:
    rows = pair(texts=("x", "y")), pair(texts=("x", "z"), safe=(False, True), better=None)
    _, report = prepared(*rows)
    assert report.contradictory_responses == 1


def test_identical_responses_are_no_pair() -> None:
    kept, report = prepared(pair(texts=("a", "a")))
    assert (kept, reasons(report)) == ([], {"both responses are identical": 1})


def test_a_bad_row_stops_or_is_counted() -> None:
    bad = [BadRow(f"r:{i}", "prompt", "is empty") for i in range(5)]
    with pytest.raises(BadRow, match=r"row r:0, column 'prompt': is empty"):
        prepared(pair(), *bad)
    kept, report = prepared(pair(), *bad, on_bad_row="skip")
    assert len(kept) == 1
    dropped = report.dropped["column 'prompt' is empty"]
    assert (dropped.count, dropped.examples) == (5, ["r:0", "r:1", "r:2"])


def test_a_row_that_the_annotator_cannot_use_is_a_bad_row() -> None:
    with pytest.raises(BadRow, match="column 'toxic'"):
        prepare([Listed([pair()])], Scores(costs_from=(Score("toxic"),)))


def test_a_cap_keeps_the_same_pairs_of_a_prompt_in_any_order_of_rows() -> None:
    rows = [pair("p", (f"a{i}", f"b{i}")) for i in range(20)] + [pair("p", ("c", "d")), pair("q")]
    kept, report = prepared(*rows, max_pairs_per_prompt=3)
    again, _ = prepared(*rows[::-1], max_pairs_per_prompt=3)
    assert [row.chosen for row in kept] == [row.chosen for row in again[::-1]]
    assert (len(kept), report.prompts, reasons(report)) == (4, 2, {"its prompt has max_pairs_per_prompt pairs": 18})


def test_the_account_says_what_safe_dpo_would_do() -> None:
    table = {(True, True): 3, (True, False): 2, (False, True): 4, (False, False): 1}
    rows = [pair(f"{safe} {i}", safe=safe) for safe, count in table.items() for i in range(count)]
    _, report = prepared(*rows, pair("unlabelled", safe=(None, None)))
    assert report.strata == {"safe/safe": 3, "safe/unsafe": 2, "unsafe/safe": 4, "unsafe/unsafe": 1, "unknown": 1}
    assert report.safe_dpo == {"keep": 5, "swap": 4, "drop": 1}
    assert report.unsafe_share == {"harm": 8 / 20, "any": 8 / 20}


def test_the_account_can_be_written_and_read() -> None:
    _, report = prepared(pair(safe=(None, None)), pair(), pair(better=1), on_bad_row="skip")
    written = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert (written["read"], written["kept"], written["unsafe_share"]) == (3, 1, {"harm": None, "any": None})
    assert written["sources"] == [
        {"name": "listed", "licence": "CC0", "read": 3, "kept": 1, "responses_from": ["people"]}
    ]
    text = "\n".join(report.lines())
    for word in ("1 of 3 rows", "CC0", "people", "1 pairs in both orders", "the pair appears in an earlier row", "nan"):
        assert word in text


def test_sources_are_counted_apart_and_of_duplicates_the_first_stays() -> None:
    _, report = prepare([Listed([pair()]), Listed([pair(), pair("q")], licence="MIT")], Flags())
    assert [(source.read, source.kept, source.licence) for source in report.sources] == [(1, 1, "CC0"), (2, 1, "MIT")]


def test_an_evaluation_source_is_read_only_where_that_is_said() -> None:
    source = Listed([pair()], evaluation_only=True)
    with pytest.raises(ValueError, match="listed is for evaluation only"):
        prepare([source], Flags())
    assert len(prepare([source], Flags(), evaluation=True)[0]) == 1


@pytest.mark.parametrize(
    "options", [{"order": "best"}, {"on_bad_row": "ignore"}, {"contradictions": "vote"}, {"max_pairs_per_prompt": 0}]
)
def test_an_unknown_option_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"is not one of|must be at least 1"):
        prepared(pair(), **options)


CHOICE = st.none() | st.integers(0, 1)
FLAG = st.none() | st.booleans()


@st.composite
def some_rows(draw: st.DrawFn) -> list[Row]:
    texts = st.sampled_from("abc")
    rows = []
    for _ in range(draw(st.integers(0, 12))):
        try:
            rows.append(
                pair(
                    draw(st.sampled_from(["p", "P!", "q"])),
                    (draw(texts), draw(texts)),
                    (draw(FLAG), draw(FLAG)),
                    draw(CHOICE),
                    draw(CHOICE),
                )
            )
        except BadRow:  # a safer response that is unsafe
            continue
    return rows


@given(
    some_rows(), st.sampled_from(["helpful", "safer", "safe_better", "helpful_or_safer"]), st.booleans(), st.booleans()
)
def test_every_row_is_kept_or_counted_and_kept_pairs_are_distinct(
    rows: list[Row], order: Order, drop: bool, cap: bool
) -> None:
    options: dict[str, Any] = {"order": order, "contradictions": "drop" if drop else "keep"}
    kept, report = prepared(*rows, **options, max_pairs_per_prompt=1 if cap else None)
    assert report.read == len(rows)
    assert report.kept == len(kept) == len(rows) - sum(reasons(report).values())
    assert sum(report.strata.values()) == len(kept)
    assert len({(row.prompt, frozenset((row.chosen, row.rejected))) for row in kept}) == len(kept)
    assert not (drop and report.contradictory_rows)
    if order == "safe_better":
        assert report.safe_dpo["swap"] == report.safe_dpo["drop"] == 0
    mirrored = [_mirror(row) for row in rows]
    again, _ = prepared(*mirrored, **options, max_pairs_per_prompt=1 if cap else None)
    assert list(map(repr, again)) == list(map(repr, kept))  # NaN does not equal itself


def _mirror(row: Row) -> Row:
    better, safer = (None if index is None else 1 - index for index in (row.better, row.safer))
    return replace(row, responses=row.responses[::-1], better=better, safer=safer)


def test_an_unknown_share_is_not_a_number() -> None:
    assert math.isnan(prepared()[1].unsafe_share["any"])


def test_repeated_pairs_and_both_their_orders_are_kept_on_request() -> None:
    rows = [pair(better=0), pair(better=1), pair(texts=("b", "a"), better=0), pair("other")]
    kept, report = prepared(*rows, duplicates="keep")
    assert [(row.chosen, row.rejected) for row in kept] == [("a", "b"), ("b", "a"), ("b", "a"), ("a", "b")]
    assert (report.contradictory_orders, report.contradictory_rows, reasons(report)) == (1, 3, {})
    kept, report = prepared(*rows, duplicates="keep", contradictions="drop")
    assert [row.chosen for row in kept] == ["a"]
    assert reasons(report) == {"the pair appears in both orders": 3}
    with pytest.raises(ValueError, match="'some' is not one of drop, keep"):
        prepared(duplicates="some")


def test_a_cap_counts_repetitions_and_takes_them_as_they_fall() -> None:
    rows = [pair(texts=("a", f"b{i % 4}"), name=f"r{i}") for i in range(400)]
    kept, report = prepared(*rows, duplicates="keep", max_pairs_per_prompt=100)
    assert len(kept) == 100 == report.kept
    counts = [sum(row.rejected == f"b{i}" for row in kept) for i in range(4)]
    assert min(counts) > 10  # and not one pair's hundred repetitions


@pytest.mark.parametrize("value", [1e39, -1e39, 1e31, 1e308])
@pytest.mark.parametrize("column", ["harm", "help"])
def test_a_label_beyond_what_a_batch_can_hold_is_a_bad_row(column: str, value: float) -> None:
    annotator = Scores((Score("harm"),), Score("help"))
    scores = {"harm": 1.0, "help": 1.0}
    row = replace(pair(), responses=(Response("a", scores=scores | {column: value}), Response("b", scores=scores)))
    with pytest.raises(BadRow, match=rf"row r, column '{'cost harm' if column == 'harm' else 'reward'}': is beyond 1e"):
        prepare([Listed([row])], annotator)
    _, report = prepare([Listed([row])], annotator, on_bad_row="skip")
    assert report.kept == 0


def test_a_cost_that_fp32_would_take_for_zero_is_a_bad_row_and_zero_is_none() -> None:
    annotator = Scores((Score("harm"),))
    for value, good in ((1e-46, False), (-1e-46, False), (0.0, True), (1e-30, True)):
        row = replace(pair(), responses=(Response("a", scores={"harm": value}), Response("b", scores={"harm": 1.0})))
        if good:
            assert len(prepare([Listed([row])], annotator)[0]) == 1
        else:
            with pytest.raises(BadRow, match="fp32 would lose its sign"):
                prepare([Listed([row])], annotator)
