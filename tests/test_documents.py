"""The documents name what exists: links, configs, commands and make targets; README stays on one page."""

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

from lit_safe.cli import COMMANDS

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SHIPPED = [path for part in ("configs", "lit_safe", "models", "data", "ops") for path in (ROOT / part).rglob("*")]


def text(path):
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_lead_to_files(document):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text(document))
    assert not [link for link in links if not (document.parent / link).exists()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_configs_exist(document):
    named = set(re.findall(r"configs/[\w./*-]+?\.yaml", text(document)))
    assert not [name for name in named if not list(ROOT.glob(name)) and Path(name).stem not in ("mine", "scored.mine")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_make_targets_exist(document):
    targets = set(re.findall(r"^([a-z-]+):", text(ROOT / "Makefile"), re.M))
    assert set(re.findall(r"(?:`|^ {4})make ([a-z][a-z-]+)", text(document), re.M)) <= targets


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_modules_that_are_run_exist(document):
    modules = set(re.findall(r"python -m ([\w.]+)", text(document)))
    assert not [module for module in modules if importlib.util.find_spec(module) is None]


def test_readme_lists_every_command_and_no_other():
    table = text(ROOT / "README.md").partition("| command |")[2].partition("\n\n")[0]
    first_cells = "\n".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `"))
    lightning, programs = {"fit", "validate", "test", "predict"}, {"configs", "oracle", "bench"}
    assert set(re.findall(r"`([a-z_]+)(?: [^`]*)?`", first_cells)) == lightning | programs | set(COMMANDS)


def test_readme_stays_on_one_page():
    lines = text(ROOT / "README.md").splitlines()
    assert len(lines) <= 130
    assert not [line for line in lines if len(line) > 120 and not line.startswith("|")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_prose_reads_in_a_terminal(document):
    """Tables and code blocks may be wider: they cannot be wrapped."""
    prose = re.sub(r"^```.*?^```", "", text(document), flags=re.M | re.S)
    assert not [line for line in prose.splitlines() if len(line) > 160 and not line.startswith("|")]


def test_nothing_that_is_shipped_names_a_folder_beside_the_checkout():
    files = [path for path in [*SHIPPED, *DOCUMENTS] if path.suffix in (".py", ".yaml", ".md")]
    assert not [str(path.relative_to(ROOT)) for path in files if "../shared" in text(path)]


def test_the_first_commands_of_readme_are_those_that_make_offers():
    helped = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, encoding="utf-8", check=True).stdout
    for target in ("quickstart", "test", "setup", "oracle"):
        assert f"make {target}" in helped


def test_papers_are_cited_with_all_authors_and_the_version_whose_equations_are_used():
    names = re.findall(r"family-names: (\w+)", text(ROOT / "CITATION.cff"))
    assert names == ["Liu", "Sun", "Zheng", "Kim", "Kim", "Kim", "Lee", "Bae", "Jang", "Lee"]
    cited = [path for path in SHIPPED if path.suffix == ".py" and "2505.20065" in text(path)]
    assert cited
    assert not [path for path in cited if "2505.20065v2" not in text(path)]
