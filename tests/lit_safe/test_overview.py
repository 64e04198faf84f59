"""``python train.py`` and ``--help`` list the commands at once, without what the commands need."""

import os
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


@pytest.mark.parametrize("buffered", [True, False])
def test_a_reader_that_stops_reading_is_no_error(buffered):
    """``python train.py --help | head -1``."""
    code = "import time; time.sleep(1); import runpy; runpy.run_path('train.py', run_name='__main__')"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    environment |= {} if buffered else {"PYTHONUNBUFFERED": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    with subprocess.Popen([sys.executable, "-c", code, "--help"], cwd=ROOT, env=environment, **pipes) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1
