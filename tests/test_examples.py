"""Each public name has an example in its docstring that runs, type hints, and a place in docs/python.md."""

import doctest
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("lit_safe.objectives", "lit_safe.statistics", "ops.sequence_logratio")
NEEDS_RANKS = "vocab_parallel_token_logp"  # tests/ops/test_vocab_parallel.py calls it on two
PUBLIC = [(package, name) for package in PACKAGES for name in importlib.import_module(package).__all__]


@pytest.mark.parametrize(("package", "name"), [public for public in PUBLIC if public[1] != NEEDS_RANKS])
def test_the_example_of_a_public_name_runs(package: str, name: str) -> None:
    public = getattr(importlib.import_module(package), name)
    module = inspect.getmodule(public)
    assert module is not None
    finder = doctest.DocTestFinder(recurse=False)
    (example,) = finder.find(public, name, module=module, globs=dict(vars(module)))
    assert example.examples, f"{package}.{name} has no example"
    told: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.FAIL_FAST).run(example, out=told.append)
    assert result.failed == 0, "".join(told)


@pytest.mark.parametrize(("package", "name"), PUBLIC)
def test_a_public_name_has_type_hints(package: str, name: str) -> None:
    public: Any = getattr(importlib.import_module(package), name)
    parameters = inspect.signature(public).parameters.values()
    assert all(one.annotation is not inspect.Parameter.empty for one in parameters)
    if inspect.isfunction(public):
        assert inspect.signature(public).return_annotation is not inspect.Signature.empty


def test_the_page_on_python_lists_every_public_name_and_no_other() -> None:
    page = (
        (ROOT / "docs" / "python.md").read_text(encoding="utf-8").partition("## Public names")[2].partition("\n## ")[0]
    )
    listed = {}
    for row in re.findall(r"^\| `([\w.]+)` \| (.*?) \|", page, re.M):
        listed[row[0]] = set(re.findall(r"`(\w+)`", row[1]))
    for package in PACKAGES:
        assert listed[package] == set(importlib.import_module(package).__all__), package
    for package, names in listed.items():
        assert all(hasattr(importlib.import_module(package), name) for name in names), package
