"""Fits in processes of their own: how they are started, what they leave, and what their checkpoints must share."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from lit_safe.runs.checkpoints import load_checkpoint, shipped

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


def run_script(name: str, *words: str | Path) -> None:
    """Run a script of this folder with one thread a process, and wait for its end."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, HERE / name, *words],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        encoding="utf-8",
        timeout=850,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def left(folder: Path, rank: int = 0) -> dict[str, Any]:
    """What a rank was left with."""
    found: dict[str, Any] = torch.load(folder / f"{rank}.pt", weights_only=True)
    return found


def check_same_checkpoint(folder: Path) -> None:
    """The last checkpoints of the fits ``1`` and ``2``, on one and on two ranks, are equal to rounding."""
    alone, shared = (load_checkpoint(folder / ranks / "checkpoints" / "last.ckpt") for ranks in "12")
    for both in ((shipped(alone), shipped(shared)), (alone["state_dict"], shared["state_dict"])):
        ours, theirs = ({k: v for k, v in state.items() if isinstance(v, torch.Tensor)} for state in both)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    moments = [state["optimizer_states"][0]["state"] for state in (alone, shared)]
    assert moments[0]
    torch.testing.assert_close(*moments, rtol=1e-4, atol=1e-6)
