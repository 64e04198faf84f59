"""A command in a process of its own: its status, where it finds the package, and signals that are passed on."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from lit_safe.stages.process import run_command

CHILD = """#!/bin/sh
trap 'echo saved > saved; exit 143' TERM
touch begun
while true; do sleep 0.02; done
"""


def test_a_command_runs_from_any_folder_and_its_status_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(["configs"]) == 0
    assert "configs/pipeline/sacpo.yaml" in capfd.readouterr().out
    assert run_command(["configs", "copi"]) == 2


def test_a_signal_to_the_pipeline_reaches_the_command_which_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    child = tmp_path / "child"
    child.write_text(CHILD, encoding="utf-8")
    child.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(child))
    before = signal.getsignal(signal.SIGTERM)

    def stop() -> None:
        while not Path("begun").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    assert run_command([]) == 143
    assert Path("saved").exists()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_killed_command_has_the_status_that_a_shell_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = tmp_path / "child"
    child.write_text("#!/bin/sh\nkill -9 $$\n", encoding="utf-8")
    child.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(child))
    assert run_command([]) == 137
