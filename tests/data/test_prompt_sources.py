"""Prompts without responses: which split they are in, and that nothing was trained on them."""

import importlib.util
import json
from pathlib import Path

import pytest

from data.annotators.flags import Flags
from data.asked import SHARES, asked
from data.module import PreferenceData
from data.schema import BadRow, Message, PromptRow
from data.sources.adv_bench import AdvBench
from data.sources.prompts import Prompts
from data.sources.trl import TRL
from data.split import prompt_id, split_key, split_of
from models.sources import TinyLlama


def row(text: str) -> PromptRow:
    return PromptRow(f"row {text}", (Message("user", text),))


PAIRS = [
    {
        "prompt": f"Name thing {i}.",
        "chosen": f"Thing {i}.",
        "rejected": "No.",
        "chosen_safe": True,
        "rejected_safe": False,
    }
    for i in range(60)
]


def data(*sources: object, **options: object) -> PreferenceData:
    made = PreferenceData(
        [TRL(PAIRS, safe=["chosen_safe", "rejected_safe"])], Flags(), prompt_sources=list(sources), **options
    )
    made.connect(type("Pair", (), {"load_tokenizer": staticmethod(TinyLlama().load_tokenizer)}))
    made.setup()
    return made


def test_every_prompt_is_in_one_split_and_none_is_left_to_training() -> None:
    rows = [row(f"Do {i}.") for i in range(400)]
    found = asked([rows], {}, skip=False)
    assert len(found) == 400
    counts = {split: sum(where == split for _, where in found) for split in SHARES}
    assert counts["train"] == 0
    assert all(abs(counts[split] / 400 - share) < 0.1 for split, share in SHARES.items())
    assert asked([rows[::-1]], {}, skip=False) == found[::-1], "the split depends on the prompt alone"


def test_a_prompt_of_the_pairs_keeps_their_split_and_one_that_was_trained_on_is_left_out() -> None:
    rows = [row("one"), row("Two!"), row("two"), row("three")]
    keys = {split_key("one"): "train", split_key("two"): "certify"}
    found = asked([rows], keys, skip=False)
    assert [(one.prompt[0].content, split) for one, split in found][:1] == [("Two!", "certify")], (
        "near-duplicates count once"
    )
    assert len(found) == 2


def test_a_conversation_that_the_pairs_train_on_is_left_out() -> None:
    turns = (Message("user", "One."), Message("assistant", "Two."), Message("user", "Three?"))
    assert asked([[PromptRow("row", turns)]], {}, False, {prompt_id(turns): "train"}) == []
    assert len(asked([[PromptRow("row", turns)]], {}, False, {})) == 1


def test_rollouts_answer_the_prompts_of_the_sources_and_training_keeps_the_pairs(tmp_path: Path) -> None:
    file = tmp_path / "asked.jsonl"
    texts = [*(f"Ask {i}." for i in range(50)), *(pair["prompt"] for pair in PAIRS)]
    file.write_text("".join(json.dumps({"question": text}) + "\n" for text in texts), encoding="utf-8")
    made = data(Prompts(str(file), column="question", licence="CC0"))
    alone = data()
    train = {prompt.text for prompt in made.prompts("train")}
    assert (
        train
        == {prompt.text for prompt in alone.prompts("train")}
        == {pair["prompt"] for pair in PAIRS if split_of(pair["prompt"]) == "train"}
    )
    for split in ("val", "dual", "certify"):
        asked_texts = [prompt.text for prompt in made.prompts(split)]
        assert asked_texts
        assert len(set(asked_texts)) == len(asked_texts)
        assert not set(asked_texts) & train
        assert [p.prompt_id for p in made.prompts(split)] == [
            p.prompt_id for p in data(Prompts(str(file), "question")).prompts(split)
        ]
    ask = next(prompt for split in ("val", "dual", "certify") for prompt in made.prompts(split))
    assert made.ask(ask.text) == ask
    assert made.licences["asked.jsonl"] == "CC0"


def test_an_unusable_prompt_is_named_or_skipped(tmp_path: Path) -> None:
    file = tmp_path / "asked.jsonl"
    file.write_text('{"prompt": "Fine."}\n{"prompt": 3}\n', encoding="utf-8")
    with pytest.raises(BadRow, match=r"asked.jsonl:2, column 'prompt': is int, not text"):
        data(Prompts(str(file))).prompts("dual")
    skipped = data(Prompts(str(file)), on_bad_row="skip")
    (split,) = [split for _, split in asked([Prompts(str(file))], {}, skip=True)]
    assert [prompt.text for prompt in skipped.prompts(split)] == ["Fine."]
    other = next(name for name in ("val", "dual", "certify") if name != split)
    with pytest.raises(ValueError, match=f"prompt_sources have no prompt in the {other} split"):
        skipped.prompts(other)


def test_a_world_in_which_nothing_is_held_out_takes_no_other_prompts() -> None:
    with pytest.raises(ValueError, match="prompt_sources with held_out: false"):
        data(Prompts("nowhere.jsonl"), held_out=False)


def test_adv_bench_is_read_from_its_own_layout(tmp_path: Path) -> None:
    file = tmp_path / "adv_bench.prompt"
    file.write_text("dataset_name: adv_bench\nseeds:\n- value: Do harm.\n- value: ''\n- 7\n", encoding="utf-8")
    first, *bad = AdvBench(str(file))
    assert first == PromptRow("AdvBench:1", (Message("user", "Do harm."),), harmful=True)
    assert [str(fault) for fault in bad] == [
        "row AdvBench:2, column 'value': is empty",
        "row AdvBench:3, column 'value': is null or missing",
    ]
    file.write_text("seeds: none\n", encoding="utf-8")
    with pytest.raises(ValueError, match="holds no list 'seeds'"):
        list(AdvBench(str(file)))


def test_the_installed_package_holds_520_requests() -> None:
    if importlib.util.find_spec("pyrit") is None:
        pytest.skip("make embedded installs pyrit")
    assert len(list(AdvBench())) == 520


def test_a_column_gives_the_category_and_only_kept_rows_are_read(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text("prompt,type,label\nHow?,homonyms,safe\nWho?,figures,unsafe\nWhy?,figures,safe\n", encoding="utf-8")
    source = Prompts(str(path), category="type", keep={"label": "safe"})
    assert [(row.prompt[0].content, row.category) for row in source] == [("How?", "homonyms"), ("Why?", "figures")]
    assert source.describe() != Prompts(str(path), category="type").describe()
    assert next(iter(Prompts(str(path)))).category is None


def test_a_missing_column_of_category_or_of_kept_rows_is_named(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text("prompt,label\nHow?,safe\n", encoding="utf-8")
    for options in ({"category": "type"}, {"keep": {"type": "safe"}}):
        (bad,) = Prompts(str(path), **options)
        assert isinstance(bad, BadRow)
        assert str(bad).startswith("row prompts.csv:1, column 'type': is null or missing")
