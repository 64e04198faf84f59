"""Every example of docs/data.md gives the pairs that it says it gives."""

import gzip
import importlib
import json
import re
from pathlib import Path

import datasets
import pyarrow
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
    assert len(EXAMPLES) == TEXT.count("```json") == 13


@pytest.mark.parametrize(("config", "rows", "count", "made"), EXAMPLES)
def test_the_rows_give_what_the_page_says(config, rows, count, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load(config)
    places = write(
        re.findall(r"path: (\w+\.jsonl)|$", json.dumps(config).replace('"', ""))[0], config, rows, monkeypatch
    )
    assert len(rows.strip().splitlines()) == int(count)
    found = list(built(config))
    assert not [row for row in found if isinstance(row, BadRow)]
    assert len(found) == int(made) * places


def write(name, config, rows, monkeypatch):
    """Put the rows where the config reads them. Returns in how many places that is."""
    if name:
        Path(name).write_text(rows, encoding="utf-8")
        return 1
    records = [json.loads(line) for line in rows.strip().splitlines()]
    path = config["init_args"]["path"]
    if isinstance(path, str):  # a hub set: a folder laid out like one stands in for it
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", Path("cache"))
        options = {"config": config["init_args"]["config"], "split": config["init_args"]["split"]}
        folder = Path(path) / options["config"]
        folder.mkdir(parents=True)
        datasets.Dataset.from_list(records).to_parquet(str(folder / f"{options['split']}-0.parquet"))
        card = f"configs:\n- config_name: {options['config']}\n  data_files:\n"
        card += f"  - {{split: {options['split']}, path: {options['config']}/*.parquet}}\n- config_name: other\n"
        (Path(path) / "README.md").write_text(f"---\n{card}---\n", encoding="utf-8")
        return 1
    packed, zstd, folder, pattern = path
    Path(packed).write_bytes(gzip.compress(rows.encode()))
    with pyarrow.output_stream(zstd, compression="zstd") as file:
        file.write(rows.encode())
    for place in (folder, pattern):
        Path(place).parent.mkdir(exist_ok=True) if "*" in place else Path(place).mkdir()
    datasets.Dataset.from_list(records[:1]).to_parquet(f"{folder}part-0.parquet")
    datasets.Dataset.from_list(records[1:]).to_parquet(f"{folder}part-1.parquet")
    datasets.Dataset.from_list(records).to_csv(pattern.replace("*", "rows"))
    return len(path)
