"""Every value of a paper's recipe says where it comes from."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "configs" / "experiment").glob("*_7b.yaml"))
ORIGIN = re.compile(r"#\s+(paper \([^)]+\)|second source|ours|unknown)(?=$|[:,;])")
VALUE = re.compile(r"^\s*(?:- )?(?P<key>[\w+]+):\s+(?!#)\S")


def without_origin(text: str) -> list[str]:
    """The lines that set a value and do not say where it comes from. A class path is wiring, and no value."""
    found = []
    for line in text.splitlines():
        setting = VALUE.match(line)
        if setting and setting["key"] != "class_path" and not ORIGIN.search(line):
            found.append(line.strip())
    return found


def test_a_value_without_an_origin_or_with_another_word_is_found():
    text = """
model:
  class_path: a.B
  init_args:
    beta: 0.1   # second source: two agree
    lr: 1.0e-6
    order: safer   # known from the paper
    - column: cost  # paper (main text)
    betas: [0.9, 0.95]  # unknown
"""
    assert without_origin(text) == ["lr: 1.0e-6", "order: safer   # known from the paper"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_value_of_a_papers_recipe_says_where_it_comes_from(recipe):
    text = recipe.read_text(encoding="utf-8")
    assert without_origin(text) == []
    assert not re.findall(r"\{[^}]*:", re.sub(r"#.*", "", text)), "a mapping on one line hides its values"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_papers_recipe_explains_its_marks_and_admits_what_is_unknown(recipe):
    text = recipe.read_text(encoding="utf-8")
    assert "was not read as a PDF" in text
    marks = {ORIGIN.search(line)[1].partition(" (")[0] for line in text.splitlines() if ORIGIN.search(line)}
    assert marks == {"paper", "second source", "ours", "unknown"}
    named = [line for line in text.splitlines() if re.match(r"^\s*[\w+]+: \.\./", line)]
    assert not named, "another file's values carry no origin"


def test_there_are_three_recipes():
    assert [path.stem for path in RECIPES] == ["c_dpo_7b", "safe_dpo_7b", "sft_7b"]
