"""Triton's interpreter has to be switched on before kernels are imported: their tests run in a child process."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ops.sequence_logratio.fused import HAVE_TRITON


def too_old_for(numpy: str, triton: str) -> bool:
    """Triton's interpreter below 3.7 makes numbers of arrays of one element, which numpy refuses from 2.4 on."""
    minor = [tuple(int(part) for part in version.split(".")[:2]) for version in (numpy, triton)]
    return minor[0] >= (2, 4) and minor[1] < (3, 7)


TRITON = importlib.import_module("triton").__version__ if HAVE_TRITON else "0.0"


def test_only_an_old_interpreter_beside_a_new_numpy_is_passed_over():
    pairs = [("2.4.6", "3.6.0"), ("2.10.0", "3.6.0"), ("2.3.5", "3.6.0"), ("2.4.6", "3.7.1"), ("2.5.5", "3.10.0")]
    assert [too_old_for(*pair) for pair in pairs] == [True, True, False, False, False]


@pytest.mark.skipif(not HAVE_TRITON, reason="triton is not installed")
@pytest.mark.skipif(
    too_old_for(np.__version__, TRITON), reason=f"the interpreter of Triton {TRITON} fails with numpy {np.__version__}"
)
@pytest.mark.parametrize("file", ["interpreted_kernels.py", "interpreted_rows.py"])
def test_the_kernels_agree_with_the_definition_under_the_interpreter(file):
    tests = Path(__file__).with_name(file)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout
