"""Triton's interpreter has to be switched on before kernels are imported: their tests run in a child process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ops.sequence_logratio.fused import HAVE_TRITON


@pytest.mark.skipif(not HAVE_TRITON, reason="triton is not installed")
def test_the_kernels_agree_with_the_definition_under_the_interpreter():
    tests = Path(__file__).with_name("interpreted_kernels.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout
