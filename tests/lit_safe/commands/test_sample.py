"""Responses written to a file: which, how many, and that nothing but their names decides them."""

import json
from pathlib import Path

import pytest
import torch

from lit_safe.commands.sample import sample
from tests.lit_safe.pair_world import aligned, pairs


def written(path: Path, **options) -> list[dict]:
    data = pairs()
    module = aligned()
    data.connect(module)
    assert sample(module, data, out=str(path), max_new_tokens=5, **options) == 0
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_prompt_of_the_split_is_answered_as_often_as_asked(tmp_path):
    lines = written(tmp_path / "out.jsonl", samples_per_prompt=3)
    data = pairs()
    data.connect(aligned())
    data.setup("validate")
    wanted = [(prompt.text, number) for prompt in data.prompts("train") for number in range(3)]
    assert [(line["prompt"], line["sample"]) for line in lines] == wanted
    assert not list(tmp_path.glob("*.partial"))


def test_neither_batch_size_nor_the_number_of_samples_changes_a_response(tmp_path):
    few = written(tmp_path / "few.jsonl", samples_per_prompt=2, batch_size=1, split="val")
    many = written(tmp_path / "many.jsonl", samples_per_prompt=4, batch_size=64, split="val")
    assert few == [line for line in many if line["sample"] < 2]
    assert written(tmp_path / "other.jsonl", samples_per_prompt=2, split="val", seed=1) != few


def test_a_checkpoint_answers_in_the_place_of_the_source(tmp_path):
    other = aligned()
    other.configure_model()
    torch.nn.init.normal_(next(other.pair.parameters()), std=0.5)
    torch.save({"state_dict": other.state_dict()}, tmp_path / "other.ckpt")
    plain = written(tmp_path / "plain.jsonl", split="val")
    assert written(tmp_path / "trained.jsonl", split="val", ckpt_path=str(tmp_path / "other.ckpt")) != plain


def test_no_samples_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="samples_per_prompt"):
        written(tmp_path / "out.jsonl", samples_per_prompt=0)
