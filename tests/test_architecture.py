"""Imports point one way, and the vocabulary is cheap to import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"lit_safe", "models", "data", "ops", "configs", "tests", "train"}
# free of lightning and transformers: any part may use them
NAMES = ("types", "protocols", "hashing", "sequences", "precision", "phases", "scorer_card", "sharded")
VOCABULARY = {f"lit_safe.{name}" for name in NAMES}
# of the standard library alone: where the shipped YAML files lie, and old names of modules
SHIPPED = {"lit_safe.installation", "lit_safe.moved"}
ALLOWED = {"lit_safe": set(), "ops": set(), "data": VOCABULARY | SHIPPED, "models": VOCABULARY | {"ops"}}
SOURCES = [path for folder in ALLOWED for path in sorted((ROOT / folder).rglob("*.py"))]


def imported_modules(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    allowed = ALLOWED[folder] | {folder}
    foreign = {
        name
        for name in imported_modules(path)
        if name.split(".")[0] in OURS and not any(name == a or name.startswith(f"{a}.") for a in allowed)
    }
    assert not foreign


@pytest.mark.parametrize(
    ("words", "alone"),
    [
        ("pair.generate(", {"answers.py"}),  # every response is drawn, scored and checked there
        ("torch.distributed", {"ranks.py", "sharded.py"}),  # ranks meet there, where an error on one ends all
        (".forward_context(", {"precision.py"}),  # the run's precision, which lit_safe.execution.quiet enters
    ],
)
def test_one_file_has_what_every_pass_outside_a_step_needs(words: str, alone: set[str]) -> None:
    files = sorted((ROOT / "lit_safe").rglob("*.py"))
    found = {path.name for path in files if words in path.read_text(encoding="utf-8")}
    assert found == alone


def test_the_types_load_without_lightning_or_transformers() -> None:
    code = "import sys, lit_safe.types; print(sorted({'lightning', 'transformers', 'datasets'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.strip() == "[]"


def test_importing_the_package_imports_the_standard_library_alone() -> None:
    code = "import sys; before = set(sys.modules); import lit_safe; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    loaded = {name.partition(".")[0] for name in ast.literal_eval(done.stdout)}
    assert loaded <= {"lit_safe", *sys.stdlib_module_names}


def test_no_test_folder_is_a_package_that_shadows_ours() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names))


KNOWN = {("commands", "report")}  # the report's callback fits a scorer, which is also a command


def test_no_two_folders_of_lit_safe_import_each_other() -> None:
    imports = {
        (part(path.relative_to(ROOT)), name.split(".")[1])
        for path in (ROOT / "lit_safe").rglob("*.py")
        for name in imported_modules(path)
        if name.startswith("lit_safe.")
    }
    both = {(a, b) for a, b in imports if a < b and (b, a) in imports}
    assert both == KNOWN


def part(path: Path) -> str:
    """The folder of lit_safe, or the module beside the folders."""
    return path.parts[1].removesuffix(".py")
