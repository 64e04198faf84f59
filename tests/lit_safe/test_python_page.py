"""docs/python.md runs as it stands, and rows and models in memory are read like files."""

import re
import warnings
from pathlib import Path

import datasets
import pytest
import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning
from transformers import AutoModelForCausalLM

from data.schema import BadRow
from data.sources.trl import TRL
from models.pair import PolicyReference
from models.sources import Loaded, TinyLlama

PAGE = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
ROWS = [{"prompt": f"Name {i}.", "chosen": f" Thing {i}.", "rejected": " No."} for i in range(3)]


def test_the_page_trains_two_policies_and_saves_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=PossibleUserWarning)  # Lightning's advice to a script
        for block in re.findall(r"```python\n(.*?)```", PAGE, re.S):
            exec(compile(block, "python.md", "exec"), names)
    saved = AutoModelForCausalLM.from_pretrained("aligned")
    moved = [not torch.equal(a, b) for a, b in zip(saved.parameters(), names["model"].parameters(), strict=True)]
    assert any(moved)
    assert names["module"].multiplier > 0


def test_the_example_has_fifteen_lines():
    block = PAGE.partition("## SafeDPO in fifteen lines")[2].partition("```python\n")[2].partition("```")[0]
    assert len([line for line in block.splitlines() if line.strip()]) == 15


@pytest.mark.parametrize("rows", [ROWS, datasets.Dataset.from_list(ROWS)], ids=["list", "Dataset"])
def test_rows_in_memory_are_those_of_a_file(rows, tmp_path):
    datasets.Dataset.from_list(ROWS).to_json(tmp_path / "rows.jsonl")
    file, memory = list(TRL(str(tmp_path / "rows.jsonl"))), list(TRL(rows))
    assert [(row.prompt, row.responses) for row in memory] == [(row.prompt, row.responses) for row in file]
    assert [row.id for row in memory] == ["rows:0", "rows:1", "rows:2"]


def test_a_cache_tells_rows_in_memory_apart_by_their_content():
    other = [*ROWS[:2], {**ROWS[2], "rejected": " Never."}]
    names = [TRL(rows).describe()["sha256"] for rows in (ROWS, datasets.Dataset.from_list(ROWS), other)]
    assert names[0] == names[1] != names[2]


def test_a_bad_row_in_memory_is_named():
    *_, bad = TRL([*ROWS, {"prompt": "Name 4.", "chosen": None, "rejected": " No."}])
    assert isinstance(bad, BadRow)
    assert (bad.row, bad.column) == ("rows:3", "chosen")
    (bad,) = TRL([3])
    assert str(bad) == "row rows:0, column '': is int, not a row"


def test_rows_that_can_be_read_once_are_refused():
    with pytest.raises(ValueError, match="more than once, got a generator"):
        TRL(row for row in ROWS)


def test_a_loaded_model_stays_as_it_is_and_is_named_in_reports():
    source = TinyLlama()
    model = source.load_model()
    before = [p.clone() for p in model.parameters()]
    pair = PolicyReference(Loaded(model, source.load_tokenizer(), name="mine", licence="MIT"))
    pair.load()
    with torch.no_grad():
        for parameter in pair.policy.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert (pair.facts().source, pair.facts().licence) == ("mine", "MIT")
