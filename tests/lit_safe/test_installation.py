"""Class paths and shipped YAML files are found from any folder, and a user's own files come first."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lit_safe import installation
from lit_safe.cli import main
from lit_safe.commands.configs import configs
from lit_safe.errors.message import UsageExit

ROOT = Path(__file__).parents[2]
HERE = ["--trainer.accelerator", "cpu", "--trainer.devices", "1"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def from_empty_folder(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "train.py"), *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, encoding="utf-8", check=False)


def test_a_shipped_file_is_found_where_the_working_directory_has_none(folder: Path) -> None:
    assert Path(installation.find_config("configs/base.yaml")) == installation.root() / "configs" / "base.yaml"


def test_a_file_of_the_working_directory_comes_first(folder: Path) -> None:
    (folder / "configs").mkdir()
    (folder / "configs" / "base.yaml").touch()
    assert installation.find_config("configs/base.yaml") == "configs/base.yaml"


@pytest.mark.parametrize("name", ["base.yaml", "configs/nothing.yaml", "configs", "my/configs/base.yaml"])
def test_any_other_word_stays_as_it_is(folder: Path, name: str) -> None:
    assert installation.find_config(name) == name


def test_words_and_values_of_a_users_yaml_name_shipped_files(folder: Path) -> None:
    (folder / "sub").mkdir()
    mine = "model: {init_args: {objective: configs/objective/safe_dpo.yaml}}\ndata: configs/data/trl.yaml\n"
    (folder / "sub" / "mine.yaml").write_text(mine, encoding="utf-8")
    built = main(["-c", "configs/base.yaml", "--config=sub/mine.yaml", *HERE], run=False)
    assert repr(built.model.objective).startswith("SafeDPO(")
    assert built.datamodule.sources[0].describe.__self__.licence is not None


def test_a_copy_brings_the_files_that_it_names_and_is_read_in_place_of_the_shipped(folder: Path) -> None:
    assert configs(["copy", "experiment/real_135m"]) == 0
    copied = {path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml")}
    assert "configs/experiment/real_135m.yaml" in copied
    assert "configs/objective/safe_dpo.yaml" in copied
    mine = folder / "configs" / "objective" / "safe_dpo.yaml"
    mine.write_text(mine.read_text(encoding="utf-8").replace("offset: 10.0", "offset: 3.0"), encoding="utf-8")
    built = main(["-c", "configs/base.yaml", "-c", "configs/experiment/real_135m.yaml", *HERE], run=False)
    assert built.model.objective.offset == 3.0


def test_a_copy_never_overwrites_an_edited_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configs(["copy", "objective/dpo"])
    mine = folder / "configs" / "objective" / "dpo.yaml"
    mine.write_text("edited", encoding="utf-8")
    assert configs(["copy", "configs/objective/dpo.yaml"]) == 0
    assert mine.read_text(encoding="utf-8") == "edited"
    assert "kept configs/objective/dpo.yaml" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["copy", "objectives/dpo"], "try: configs/objective/dpo.yaml"),
        (["copy", "zzzzzzzz"], "`lit-safe configs` lists the names"),
        (["copy"], "configs copy needs a name"),
        (["paste"], "configs has no 'paste'"),
    ],
)
def test_a_wrong_name_is_answered_with_a_right_one(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    with pytest.raises(UsageExit, match=re.escape(said)):
        configs(words)
    assert not capsys.readouterr().out
    assert not list(folder.iterdir())


def test_listing_the_configs_imports_neither_torch_nor_lightning(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['lit-safe', 'configs']\n"
        "from lit_safe.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: print(sorted({'torch', 'lightning', 'transformers'} & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", check=True
    )
    *listed, loaded = done.stdout.splitlines()
    assert "configs/base.yaml" in listed
    assert loaded == "[]"


def test_our_parts_come_first_on_the_path_and_then_the_working_directory(folder: Path) -> None:
    assert installation.add_to_path() == []
    assert sys.path[:2] == [str(installation.root()), str(folder)]
    before = list(sys.path)
    installation.add_to_path()
    assert sys.path == before


@pytest.mark.parametrize("file", ["data.py", "models/__init__.py", "ops/helpers.py"])
def test_a_package_of_the_working_directory_that_ours_hides_is_named(folder: Path, file: str) -> None:
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).touch()
    (sentence,) = installation.add_to_path()
    assert repr(file.split("/")[0].removesuffix(".py")) in sentence


def test_a_folder_of_data_files_hides_nothing(folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "data" / "rows.jsonl").touch()
    assert installation.add_to_path() == []


def test_an_objective_of_the_working_directory_is_found_by_its_class_path(folder: Path) -> None:
    (folder / "my_objective.py").write_text(
        "from dataclasses import dataclass\nfrom lit_safe.objectives import DPO\n\n\n"
        '@dataclass(frozen=True)\nclass Mine(DPO):\n    """Mine."""\n',
        encoding="utf-8",
    )
    words = ["-c", "configs/base.yaml", "--data", "configs/data/trl.yaml", "--model.objective", "my_objective.Mine"]
    done = from_empty_folder(folder, "fit", *words, "--print_config")
    assert done.returncode == 0, done.stderr
    assert "class_path: my_objective.Mine" in done.stdout
    assert not done.stderr


def test_a_data_module_that_lacks_a_method_is_refused_in_one_line(folder: Path) -> None:
    (folder / "my_data.py").write_text(
        "from lightning import LightningDataModule\n\n\nclass Mine(LightningDataModule):\n"
        '    """Mine."""\n\n    def __init__(self, seed: int = 0) -> None:\n        super().__init__()\n',
        encoding="utf-8",
    )
    done = from_empty_folder(folder, "fit", "-c", "configs/base.yaml", "--data", "my_data.Mine")
    assert done.returncode == 2
    line = done.stderr.strip().splitlines()[-1]
    assert "my_data.Mine has no" in line
    for name in ("batches_of", "connect", "require", "PreferenceRunData"):
        assert name in line
    assert "Traceback" not in done.stderr
