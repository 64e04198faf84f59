"""Peak memory at a real vocabulary, in a process of its own so that nothing else has raised the peak before."""

import subprocess
import sys
from pathlib import Path

import pytest

MEASURE = """
import sys, torch
from ops.sequence_logratio import token_logp
torch.set_num_threads(1)
T, D, V = 512, 32, 151_936
def peak_kib():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
def step(tokens, vocabulary):
    hidden_TD = torch.randn(tokens, D, requires_grad="hidden" in learns)
    weight_VD = torch.randn(vocabulary, D, requires_grad="weight" in learns)
    logp_T = token_logp(hidden_TD, weight_VD, torch.arange(tokens), backend=backend)
    if learns:
        logp_T.sum().backward()
backend, learns = sys.argv[1], sys.argv[2]
step(512, 1024)  # libraries load and set their buffers aside
before = peak_kib()
step(T, V)
print((peak_kib() - before) / 1024)
"""
LOGITS_MIB = 512 * 151_936 * 4 / 2**20
HEAD_MIB = 151_936 * 32 * 4 / 2**20


def peak_mib(backend: str, learns: str) -> float:
    """MiB that one step takes at its peak, the head's weight and gradient included."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, backend, learns],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    return float(done.stdout)


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")


@pytest.mark.parametrize(("learns", "heads"), [("", 1), ("hidden", 1), ("hidden weight", 2)])
@pytest.mark.parametrize("backend", ["auto", "chunked"])
def test_chunks_never_hold_the_logits(backend, learns, heads):
    assert peak_mib(backend, learns) - heads * HEAD_MIB < LOGITS_MIB / 6


def test_the_measurement_sees_logits_where_they_are_held():
    assert peak_mib("reference", "hidden weight") - 2 * HEAD_MIB > 2 * LOGITS_MIB
