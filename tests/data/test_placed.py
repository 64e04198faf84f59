"""Published splits as they are: whole train rows train, test rows are held out, whatever repeats them."""

import pytest

from data.annotators.flags import Flags
from data.module import PreferenceData
from data.schema import Message, PromptRow, Response, Row
from data.sft import SftData
from data.sources.instructions import ResponsesOf
from data.sources.placed import Placed, PlacedResponses
from data.sources.places import Reserved
from data.split import split_of
from models.sources import TinyLlama


class Pairs:
    """Pairs named ``<name> <i>``."""

    licence = "CC0"

    def __init__(self, first: int, last: int, name: str = "Question", evaluation_only: bool = False) -> None:
        self.first, self.last, self.name, self.evaluation_only = first, last, name, evaluation_only

    def describe(self) -> dict[str, str]:
        return {"name": self.name, "rows": f"{self.first}-{self.last}"}

    def __iter__(self):
        for i in range(self.first, self.last):
            prompt = (Message("user", f"{self.name} {i}?"),)
            yield Row(f"{self.name}:{i}", prompt, (Response(f"no {i}", True), Response(f"yes {i}", True)), better=1)


class Asked(Pairs):
    def __iter__(self):
        for i in range(self.first, self.last):
            yield PromptRow(f"asked:{i}", (Message("user", f"{self.name} {i}?"),))


def ready(*sources, cls=PreferenceData, **options):
    labels = {"annotator": Flags()} if cls is PreferenceData else {}
    data = cls(list(sources), **labels, **options)
    data.connect(type("Pair", (), {"load_tokenizer": staticmethod(TinyLlama().load_tokenizer)}))
    data.setup()
    return data


def numbers(data, split):
    return {int(prompt.text.partition("Question ")[2].partition("?")[0]) for prompt in data.prompts(split)}


def test_a_published_train_split_trains_whole_and_its_test_split_is_held_out_whole():
    data = ready(Placed(Pairs(0, 60), "train"), Placed(Pairs(60, 80)))
    assert numbers(data, "train") == set(range(60))
    assert numbers(data, "val") == set(range(60, 80))
    for split in ("dual", "certify"):
        with pytest.raises(ValueError, match=f"the {split} split has no rows"):
            data.prompts(split)


def test_a_prompt_of_both_is_held_out_in_any_order_of_the_sources():
    train, test = Placed(Pairs(0, 60), "train"), Placed(Pairs(50, 80), "certify")
    for sources in ((train, test), (test, train)):
        data = ready(*sources)
        assert numbers(data, "certify") == set(range(50, 80))
        assert numbers(data, "train") == set(range(50))


def test_sources_without_a_place_keep_the_hash():
    data = ready(Pairs(0, 60), Placed(Pairs(60, 80)))
    where = {i: split_of((Message("user", f"Question {i}?"),)) for i in range(60)}
    assert numbers(data, "train") == {i for i, split in where.items() if split == "train"}
    assert numbers(data, "val") == {i for i, split in where.items() if split == "val"} | set(range(60, 80))


def test_fine_tuning_keeps_the_same_places():
    train, test = (ResponsesOf(Pairs(*ends), "better") for ends in ((0, 60), (60, 80)))
    data = ready(PlacedResponses(train, "train"), PlacedResponses(test), cls=SftData)
    assert numbers(data, "train") == set(range(60))
    assert numbers(data, "val") == set(range(60, 80))


def test_prompts_of_the_pairs_places_are_not_asked_where_they_trained():
    data = ready(Placed(Pairs(0, 60), "train"), prompt_sources=[Reserved(Asked(50, 90), "val")])
    assert numbers(data, "val") == set(range(60, 90))


def test_pairs_as_texts_follow_the_places_and_say_which_are_for_evaluation():
    data = ready(Placed(Pairs(0, 60), "train"), Placed(Pairs(60, 80)))
    assert len(data.pairs("train")) == 60
    assert not any(pair.evaluation_only for pair in data.pairs("train"))
    assert all(pair.evaluation_only for pair in data.pairs("val"))


def test_the_place_is_part_of_the_cache_key():
    assert Placed(Pairs(0, 9), "train").describe() != Placed(Pairs(0, 9)).describe()


def test_a_wrong_place_is_refused():
    with pytest.raises(ValueError, match="split must be one of train, val, dual, certify, got 'test'"):
        Placed(Pairs(0, 9), "test")
    with pytest.raises(ValueError, match="for evaluation only"):
        Placed(Pairs(0, 9, evaluation_only=True), "train")
