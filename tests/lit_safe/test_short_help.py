"""``COMMAND --help`` shows what a person sets, by purpose, at once; ``--help_all`` shows everything."""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lit_safe.cli import COMMANDS, SafeCLI, _command
from lit_safe.overview import LIGHTNING
from lit_safe.short_help import BUILT, EVALUATION, FIT, NOT_OF_EVALUATION, WIDTH, short_help
from tests.lit_safe.typed_world import Run, typed

__all__ = ["typed"]  # a fixture

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("words", [["fit", "--help"], ["fit", "-c", "configs/base.yaml", "-h"], ["compare", "--help"]])
def test_it_imports_neither_torch_nor_lightning(words: list[str]) -> None:
    code = (
        "import runpy, sys\n"
        "runpy.run_path('train.py', run_name='__main__')\n"
        "print('imported', sorted({'torch', 'lightning', 'jsonargparse', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    )
    assert done.stdout.startswith(f"usage: python train.py {words[0]} ")
    assert done.stdout.endswith("imported []\n")


@pytest.mark.parametrize("command", [*LIGHTNING, *COMMANDS])
def test_every_command_has_one_and_it_fits_a_screen(command: str) -> None:
    lines = short_help("python train.py", command).splitlines()
    assert len(lines) <= 60
    assert not [line for line in lines if len(line) > WIDTH]
    assert f"`python train.py {command} --help_all` lists every setting." in lines[-1] + lines[-2]


@pytest.mark.parametrize("command", list(LIGHTNING))
def test_every_setting_that_it_shows_is_one_that_the_command_takes(
    command: str, typed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SafeCLI, "_run_subcommand", lambda self, command: None)
    groups = FIT if command == "fit" else EVALUATION
    settings = [
        one for group in groups.values() for one in group if command == "fit" or one.flag not in NOT_OF_EVALUATION
    ]
    Path("runs/first/checkpoints").mkdir(parents=True)
    words = [word for one in settings if one.flag != "--ckpt_path" for word in (one.flag, one.value)]
    parsed: Any = typed(command, *words).config[command]
    assert parsed["data"]["init_args"]["max_length"] == 512
    assert parsed["trainer"]["default_root_dir"] == "runs/first"
    if command == "fit":
        assert parsed["dual"]["lr"] == 0.1
        assert parsed["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 1e-6
    assert "ckpt_path" in parsed


@pytest.mark.parametrize("command", COMMANDS)
def test_of_our_own_commands_it_shows_every_setting_with_its_default(command: str) -> None:
    text = short_help("lit-safe", command)
    for name, parameter in inspect.signature(_command(command)).parameters.items():
        if name in BUILT:
            assert BUILT[name] in text.partition("from the YAML files of a run")[2]
        elif parameter.annotation in (list[str],):
            assert f"\n  {name.upper()} ..." in text
        elif parameter.default is inspect.Parameter.empty:
            assert f"\n  --{name} {name.upper()} " in text
        elif isinstance(parameter.default, bool) or parameter.default is None:
            assert f"\n  --{name} {({None: 'null', True: 'true', False: 'false'})[parameter.default]} " in text
        elif name != "words":
            assert f"\n  --{name} {parameter.default} " in text


@pytest.mark.slow  # imports Lightning in a process of its own
def test_help_all_is_the_parsers_own() -> None:
    command = [sys.executable, "train.py", "fit", "--help_all"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=True).stdout
    assert "--trainer.plugins PLUGINS" in told
    assert len(told.splitlines()) > 300
