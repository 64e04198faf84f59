"""A shipped YAML that reads a file says in its first line where to get it."""

import re
from pathlib import Path

import pytest
import yaml

from data.sources.formats import format_of

CONFIGS = Path(__file__).parents[1] / "configs"
HUB_ID = r"\b[A-Za-z][\w.-]*/[A-Za-z][\w.-]+\b"
COMMAND = r"\b(python (-c|-m|train\.py) |git clone )\S"


def strings(value):
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)
    elif isinstance(value, str):
        yield value


def files(path):
    return sorted({text for text in strings(yaml.safe_load(path.read_text(encoding="utf-8"))) if format_of(Path(text))})


def header(path):
    return re.match(r"(#.*\n)*", path.read_text(encoding="utf-8"))[0]


READERS = [path for path in sorted(CONFIGS.rglob("*.yaml")) if files(path)]


def test_the_configs_that_read_a_file_are_found():
    assert {"scored.yaml", "mix_one_safe.yaml", "xstest.yaml", "c_dpo_7b.yaml"} <= {path.name for path in READERS}
    assert "pku_saferlhf.yaml" not in {path.name for path in READERS}, "the hub's set is fetched by its id"


@pytest.mark.parametrize("path", READERS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_its_first_line_says_where_to_get_the_file_and_its_head_has_the_command(path):
    first = header(path).partition("\n")[0]
    assert first.startswith("# Files: ")
    assert re.search(HUB_ID, first) or re.search(COMMAND, first)
    assert re.search(COMMAND, header(path))


@pytest.mark.parametrize("path", READERS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_file_is_written_by_a_command_of_the_head_or_is_named_as_the_users_own(path):
    told = header(path)
    for name in files(path):
        assert name in told or Path(name).parent.as_posix() in told, name
