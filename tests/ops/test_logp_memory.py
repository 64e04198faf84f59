"""Peak memory at a real vocabulary, in a process of its own so that nothing else has raised the peak before."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ops.sequence_logratio import peak_memory

MEASURE = """
import json, sys, torch
from ops.sequence_logratio import token_logp
from ops.sequence_logratio.peak_memory import peak_mib
torch.set_num_threads(1)
T, D, V = 512, 32, 151_936
def step(tokens, vocabulary, learns):
    hidden_TD = torch.randn(tokens, D, requires_grad="hidden" in learns)
    weight_VD = torch.randn(vocabulary, D, requires_grad="weight" in learns)
    logp_T = token_logp(hidden_TD, weight_VD, torch.arange(tokens), backend=sys.argv[1])
    if learns:
        logp_T.sum().backward()
step(512, 1024, "hidden weight")  # libraries load and set their buffers aside
before = peak_mib()
peaks = {}
for learns in ("", "hidden", "hidden weight"):  # a peak only rises: the cheapest first
    step(T, V, learns)
    peaks[learns] = peak_mib() - before
json.dump(peaks, sys.stdout)
"""
LOGITS_MIB = 512 * 151_936 * 4 / 2**20
HEAD_MIB = 151_936 * 32 * 4 / 2**20

pytestmark = pytest.mark.skipif(peak_memory.missing() is not None, reason=str(peak_memory.missing()))


def peaks_mib(backend: str) -> dict[str, float]:
    """MiB of one step at its peak, by what learns; the head's weight and its gradient are not counted."""
    command = [sys.executable, "-c", MEASURE, backend]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True, cwd=Path(__file__).parents[2])
    return {learns: mib - HEAD_MIB * (1 + ("weight" in learns)) for learns, mib in json.loads(done.stdout).items()}


def test_slabs_never_hold_the_logits():
    assert max(peaks_mib("auto").values()) < LOGITS_MIB / 10


def test_the_measurement_sees_logits_where_they_are_held():
    assert min(peaks_mib("reference").values()) > LOGITS_MIB
