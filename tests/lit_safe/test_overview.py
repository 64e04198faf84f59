"""``python train.py`` and ``--help`` list the commands at once, without what the commands need."""

import subprocess
import sys
from pathlib import Path

import pytest

from lit_safe import __main__ as program
from lit_safe.cli import COMMANDS
from lit_safe.overview import LIGHTNING, PROGRAMS, summaries

ROOT = Path(__file__).parents[2]


def test_it_knows_every_command_and_no_other():
    assert summaries().keys() == set(COMMANDS)
    assert PROGRAMS.keys() == program.PROGRAMS.keys()
    assert all(line.endswith(".") for line in [*summaries().values(), *LIGHTNING.values(), *PROGRAMS.values()])


@pytest.mark.parametrize(("words", "status"), [([], 2), (["--help"], 0), (["-h"], 0)])
def test_it_imports_neither_torch_nor_lightning(words, status):
    code = (
        "import runpy, sys\n"
        "try:\n    runpy.run_path('train.py', run_name='__main__')\n"
        "except SystemExit as stop:\n    print('status', stop.code)\n"
        "print('imported', sorted({'torch', 'lightning', 'jsonargparse', 'numpy'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, *words]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=True).stdout
    assert told.endswith(f"status {status}\nimported []\n")
    assert all(f"  {name} " in told for name in [*LIGHTNING, *COMMANDS, *PROGRAMS])
    assert max(len(line) for line in told.splitlines()) <= 130
