"""The world knows nothing of its truth, the truth nothing of the study, and other data nothing of the oracle."""

import ast
from pathlib import Path

import pytest

DATA = Path(__file__).parents[2] / "data"
LAYERS = ("world", "truth", "study")  # each imports only itself and those before it


def imported(folder: Path) -> set[str]:
    """The second and third part of every ``data.oracle.*`` module that the files of ``folder`` import."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in folder.rglob("*.py"))
    found = {node.module for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return {module.split(".")[2] for module in found if module and module.startswith("data.oracle.")}


@pytest.mark.parametrize(("place", "layer"), list(enumerate(LAYERS)))
def test_each_layer_of_the_oracle_imports_only_those_below_it(place: int, layer: str) -> None:
    assert imported(DATA / "oracle" / layer) <= set(LAYERS[: place + 1])
    assert layer in imported(DATA / "oracle" / layer)  # the test reads the imports that there are


def test_every_file_of_the_oracle_but_its_command_is_in_a_layer() -> None:
    assert {path.name for path in (DATA / "oracle").glob("*.py")} == {"__init__.py", "run.py"}
    assert {path.name for path in (DATA / "oracle").iterdir() if list(path.glob("*.py"))} == set(LAYERS)


def test_data_that_are_not_the_oracles_do_not_import_it() -> None:
    others = [path for path in DATA.rglob("*.py") if "oracle" not in path.relative_to(DATA).parts]
    assert len(others) > 20
    assert not [path for path in others if "data.oracle" in path.read_text(encoding="utf-8")]


def test_models_run_in_the_trainers_precision_by_one_function() -> None:
    """``lit_safe.precision.run_precision`` also covers a policy on another device than the trainer's."""
    files = [path for path in DATA.rglob("*.py") if ".forward_context(" in path.read_text(encoding="utf-8")]
    assert not files
