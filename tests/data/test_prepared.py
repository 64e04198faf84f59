"""Pairs stay in their sources: hashes and labels decide which to keep, and a second reading gives their texts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import candidates as candidates_module
from data import preparation
from data import tokeniser as tokeniser_module
from data.annotators.flags import Flags
from data.module import PreferenceData
from data.preparation import prepare, prepared
from data.schema import BadRow, Message, PreferenceRow, Response, Row, SftRow
from data.sft import SftData
from data.split import assign, split_key

ANSWERS = ["yes", "no", "maybe"]


class Listed:
    licence = "CC0"

    def __init__(self, rows):
        self.rows = rows

    def describe(self):
        return {"name": "listed"}

    def __iter__(self):
        return iter(self.rows)


def row(number, prompt, first, second, safe, better, group):
    if first == second and number % 2:
        return BadRow(f"toy:{number}", "response_1", "is null or missing")
    answers = (Response(ANSWERS[first], safe[0]), Response(ANSWERS[second], safe[1]))
    return Row(f"toy:{number}", (Message("user", f"q{prompt}"),), answers, better, None, "people", group)


flags = st.tuples(*[st.sampled_from([True, False, None])] * 2)
answers = st.integers(0, 2)
drawn = st.tuples(
    st.integers(0, 3), answers, answers, flags, st.sampled_from([0, 1, None]), st.sampled_from([None, "g", "h"])
)
options = st.fixed_dictionaries(
    {
        "order": st.sampled_from(["helpful", "safer", "safe_better", "helpful_or_safer"]),
        "contradictions": st.sampled_from(["keep", "drop"]),
        "duplicates": st.sampled_from(["keep", "drop"]),
        "max_pairs_per_prompt": st.sampled_from([None, 1, 2]),
    }
)


class Counting(Listed):
    """Counts how often it is read."""

    readings = 0

    def __iter__(self):
        self.readings += 1
        return super().__iter__()


@pytest.mark.parametrize(("characters", "readings"), [(1 << 20, 1), (10, 3)])
def test_pairs_with_few_texts_are_read_once_and_others_at_each_iteration(monkeypatch, characters, readings):
    monkeypatch.setattr(preparation, "IN_MEMORY", characters)
    source = Counting([row(i, i, 0, 1, (True, True), 0, None) for i in range(3)])
    found = prepared([source], Flags())
    assert [pair.id for pair in found] == [pair.id for pair in found] == ["toy:0", "toy:1", "toy:2"]
    assert source.readings == readings


@given(st.lists(drawn, max_size=12), st.integers(0, 12), options, st.sampled_from([0, 40, 1 << 25]))
def test_splits_and_counts_are_those_of_the_rows_that_the_second_reading_gives(rows, cut, chosen, characters):
    made = [row(i, *values) for i, values in enumerate(rows)]
    sources = [Listed(made[:cut]), Listed(made[cut:])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "IN_MEMORY", characters)
        found = prepared(sources, Flags(), on_bad_row="skip", **chosen)
    kept, report = prepare(sources, Flags(), on_bad_row="skip", **chosen)
    assert repr(list(found)) == repr(list(found)) == repr(kept), "repr, because NaN differs from itself"
    assert len(found) == len(kept) == report.kept
    assert report.read == len(made) == report.kept + sum(entry.count for entry in report.dropped.values())
    barred = {split_key((Message("user", "q1"),)): "certify"}
    assert found.splits() == assign(kept)
    assert found.splits(barred) == assign(kept, barred)


@pytest.mark.parametrize("change", ["fewer", "other"])
def test_a_source_that_changes_between_the_readings_is_refused(monkeypatch, change):
    monkeypatch.setattr(preparation, "IN_MEMORY", 8)
    rows = [row(i, i, 0, 1, (True, True), 0, None) for i in range(3)]
    source = Listed(rows)
    found = prepared([source], Flags())
    source.rows = rows[:2] if change == "fewer" else [*rows[:2], row(9, 2, 0, 1, (True, True), 0, None)]
    with pytest.raises(ValueError, match="row toy:2 is gone: its source changed while it was read"):
        list(found)


def test_only_a_few_chunks_of_rows_are_in_memory_at_once(renderer, monkeypatch):
    monkeypatch.setattr(preparation, "IN_MEMORY", 0)
    monkeypatch.setattr(tokeniser_module, "CHUNK", 8)
    alive, most = 0, 0

    class Counted(PreferenceRow):
        def __init__(self, *values):
            nonlocal alive, most
            super().__init__(*values)
            alive += 1
            most = max(most, alive)

        def __del__(self):
            nonlocal alive
            alive -= 1

    monkeypatch.setattr(candidates_module, "PreferenceRow", Counted)
    source = Listed([row(i, i, 0, 1, (True, False), 0, None) for i in range(200)])
    data = PreferenceData([source], Flags(), max_length=100)
    data._tokenizer = renderer.tokenizer
    data.setup()
    assert len(data.tokenised.name) == 200
    assert 8 < most <= 3 * 8 + 1


def test_rows_for_fine_tuning_are_read_again_and_a_changed_source_is_refused(renderer):
    rows = [SftRow(f"toy:{i}", (Message("user", f"q{i % 3}"),), "yes") for i in range(5)]
    source = Listed([*rows[:1], BadRow("toy:x", "response", "is empty"), *rows[1:]])
    data = SftData([source], max_length=100, on_bad_row="skip")
    data._tokenizer = renderer.tokenizer
    data.setup()
    assert data.tokenised.name == ("toy:0", "toy:1", "toy:2")
    reasons = {"column 'response' is empty": 1, "the same prompt and response again": 2}
    assert data.report["preparation"] == {"kept": 3, "dropped": reasons, "licences": ["CC0"]}

    class Shrinking(Listed):
        def __iter__(self):
            yield from self.rows
            self.rows = self.rows[:2]

    shrinking = SftData([Shrinking(rows[:3])], max_length=100)
    shrinking._tokenizer = renderer.tokenizer
    with pytest.raises(ValueError, match="row 2 of Shrinking is gone: it changed while it was read"):
        shrinking.setup()
