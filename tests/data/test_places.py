"""Parts of a source of prompts, and prompts that are kept for one split."""

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.asked import asked
from data.schema import BadRow, Message, PromptRow
from data.sources.places import Places, Reserved
from data.split import split_key

PROMPTS = Path(__file__).parent.parent.parent / "data" / "prompts"


class Asked:
    """Prompts in memory; an empty text is an unusable row."""

    licence = "none"

    def __init__(self, *texts: str, evaluation_only: bool = False) -> None:
        self.texts, self.evaluation_only = texts, evaluation_only

    def describe(self) -> dict[str, str]:
        return {"source": "Asked", "name": "asked"}

    def __iter__(self) -> Iterator[PromptRow | BadRow]:
        for number, text in enumerate(self.texts):
            yield (
                PromptRow(f"asked:{number}", (Message("user", text),)) if text else BadRow("asked", "value", "is empty")
            )


def texts(source: Places | Reserved) -> list[str]:
    return [row.prompt[0].content for row in source if isinstance(row, PromptRow)]  # type: ignore[union-attr]  # all are conversations


@given(st.sets(st.text(min_size=1, max_size=5), min_size=1, max_size=20), st.integers(0, 20))
def test_the_prompts_before_a_place_and_from_it_on_are_all_prompts_once(words: set[str], at: int) -> None:
    source = Asked(*sorted(words))
    before = texts(Places(source, count=at)) if at else []
    after = texts(Places(source, first=at)) if at < len(words) else []
    assert sorted(before + after) == sorted(words)
    assert len(before) == min(at, len(words))


def test_the_place_of_a_prompt_does_not_depend_on_the_order_of_the_file_and_bad_rows_stay() -> None:
    words = [f"request {k}" for k in range(30)]
    assert set(texts(Places(Asked(*words), 5, 10))) == set(texts(Places(Asked(*reversed(words)), 5, 10)))
    assert [type(row) for row in Places(Asked("", "a"), 0, 1)] == [BadRow, PromptRow]


def test_a_part_that_holds_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="first must be at least 0"):
        Places(Asked("a"), first=-1)
    with pytest.raises(ValueError, match="count must be at least 1"):
        Places(Asked("a"), count=0)
    with pytest.raises(ValueError, match="has 1 prompts, none from place 1 on"):
        iter(Places(Asked("a"), first=1))


def test_reserved_prompts_are_all_in_their_split_but_for_those_of_pairs() -> None:
    words = [f"request {k}" for k in range(40)]
    source = Reserved(Asked(*words), "certify")
    trains = {split_key((Message("user", words[0]),)): "train", split_key((Message("user", words[1]),)): "val"}
    found = asked([source], trains, skip=True)  # type: ignore[arg-type]  # mypy widens the words of the mapping to str
    assert [split for _, split in found] == ["val"] + ["certify"] * 38
    assert {split for _, split in asked([Asked(*words)], {}, skip=True)} == {"val", "dual", "certify"}


def test_the_train_split_cannot_be_reserved_and_another_word_is_no_split() -> None:
    for word in ("train", "test"):
        with pytest.raises(ValueError, match=f"split must be val, dual or certify, got '{word}'"):
            Reserved(Asked("a"), word)  # type: ignore[arg-type]  # the fault under test


def test_other_places_and_splits_are_other_data_with_the_licence_and_use_of_the_source() -> None:
    source = Asked("a", "b", evaluation_only=True)
    made = [
        Places(source),
        Places(source, 1),
        Places(source, 0, 1),
        Reserved(source, "val"),
        Reserved(source, "certify"),
    ]
    assert len({tuple(sorted(one.describe().items())) for one in made}) == 5
    assert all(one.licence == "none" and one.evaluation_only for one in made)
    with pytest.raises(ValueError, match="for evaluation only and move no multiplier"):
        Reserved(source, "dual")


def test_the_fresh_harmless_requests_share_no_topic_with_those_on_which_the_recipe_was_chosen() -> None:
    rows = {
        name: list(csv.DictReader((PROMPTS / f"{name}.csv").read_text(encoding="utf-8").splitlines()))
        for name in ("everyday", "everyday_fresh")
    }
    topics = {name: {row["topic"] for row in found} for name, found in rows.items()}
    assert len(rows["everyday_fresh"]) == 160
    assert len(topics["everyday_fresh"]) == 40
    assert not topics["everyday"] & topics["everyday_fresh"]
