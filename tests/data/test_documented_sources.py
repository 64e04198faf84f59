"""Every example of docs/data.md gives the pairs that it says it gives."""

import importlib
import re
from pathlib import Path

import pytest
import yaml

from data.schema import BadRow

TEXT = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(
    r"```yaml\n((?:(?!```).)*)```\n\n```json\n((?:(?!```).)*)```\n\nThese (\d+) rows give (\d+)", TEXT, re.S
)


def built(config):
    module, _, name = config["class_path"].rpartition(".")
    options = {
        key: built(value) if isinstance(value, dict) and "class_path" in value else value
        for key, value in config["init_args"].items()
    }
    return getattr(importlib.import_module(module), name)(**options)


def test_every_pair_of_a_config_and_rows_is_an_example():
    assert len(EXAMPLES) == TEXT.count("```json") == 8


@pytest.mark.parametrize(("config", "rows", "count", "made"), EXAMPLES)
def test_the_rows_give_what_the_page_says(config, rows, count, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (name,) = set(re.findall(r"path: (\w+\.jsonl)", config))
    Path(name).write_text(rows, encoding="utf-8")
    assert len(rows.strip().splitlines()) == int(count)
    found = list(built(yaml.safe_load(config)))
    assert not [row for row in found if isinstance(row, BadRow)]
    assert len(found) == int(made)
