"""The product runs where modules of Unix alone, /proc and Triton are missing, and from any folder."""

import ast
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from data.oracle.study import Job, Study, workers
from lit_safe.execution.process_memory import limit_bytes, peak_bytes
from lit_safe.runs.run_checkpoint import RunCheckpoint
from ops.sequence_logratio import peak_memory

ROOT = Path(__file__).parents[1]
PRODUCT = [path for top in ("lit_safe", "models", "data", "ops") for path in sorted((ROOT / top).rglob("*.py"))]
UNIX = ("resource", "fcntl", "pwd", "grp", "termios", "triton")
READS_PROC = {"ops/sequence_logratio/peak_memory.py"}


def test_every_module_imports_without_what_unix_alone_has_and_without_triton() -> None:
    code = (
        "import sys, importlib, os, pathlib, signal\n"
        "sys.modules['triton'] = None\n"
        "import datasets, filelock, lightning, psutil, torch, transformers\n"  # they have their own ways around
        "import transformers.models.llama.modeling_llama\n"
        f"sys.modules |= dict.fromkeys({UNIX!r})\n"
        "for module, name in ((os, 'fork'), (os, 'sysconf'), (os, 'geteuid'), (os, 'getuid'), (signal, 'SIGKILL')):\n"
        "    delattr(module, name)\n"
        "for top in ('lit_safe', 'models', 'data', 'ops'):\n"
        "    for path in sorted(pathlib.Path(top).rglob('*.py')):\n"
        "        name = '.'.join(path.with_suffix('').parts).removesuffix('.__init__')\n"
        "        if name.endswith('__main__') or name.startswith('ops.') and name.endswith('kernels'): continue\n"
        "        importlib.import_module(name)\n"
        "from lit_safe.execution.process_memory import peak_bytes\n"
        "print('imported', peak_bytes() > 1e8)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    assert done.stdout.strip() == "imported True", done.stderr[-2000:]


def names_no_encoding(call: ast.Call) -> bool:
    """Whether a call reads or writes text in whatever encoding the machine is set to."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    owner = getattr(getattr(call.func, "value", None), "id", "")
    given = {word.arg for word in call.keywords}
    if "encoding" in given or None in given:
        return False
    if name == "open" and owner not in {"os", "io", "gzip"}:
        modes = [
            *call.args[not isinstance(call.func, ast.Attribute) :][:1],
            *(k.value for k in call.keywords if k.arg == "mode"),
        ]
        return all(isinstance(mode, ast.Constant) and "b" not in str(mode.value) for mode in modes)
    if name in {"read_text", "write_text"}:
        return len(call.args) < (2 if name == "write_text" else 1)
    return owner == "subprocess" and "text" in given


def test_every_text_has_a_named_encoding() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in [*PRODUCT, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "requirements").glob("*.py"))]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and names_no_encoding(node)
    ]
    assert not found


def test_one_place_reads_proc() -> None:
    found = {path.relative_to(ROOT).as_posix() for path in PRODUCT if "/proc/" in path.read_text(encoding="utf-8")}
    assert found == READS_PROC


def test_the_peak_covers_what_is_held_and_counts_bytes() -> None:
    held = torch.ones(2**26)  # 256 MiB
    now = psutil.Process().memory_info().rss
    assert held.nbytes < 0.99 * now <= peak_bytes() < limit_bytes() <= psutil.virtual_memory().total


@pytest.mark.parametrize(("system", "unit"), [("linux", 1024), ("darwin", 1)])
def test_the_peak_is_in_the_systems_own_unit(system: str, unit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda who: SimpleNamespace(ru_maxrss=7))
    monkeypatch.setitem(sys.modules, "resource", usage)
    monkeypatch.setattr(sys, "platform", system)
    assert peak_bytes() == 7 * unit


def test_where_no_peak_can_be_read_one_line_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak_memory, "CLEAR", Path("/nowhere/clear_refs"))
    monkeypatch.setattr(peak_memory, "STATUS", Path("/nowhere/status"))
    with pytest.raises(OSError, match="a CPU's memory is read from /nowhere, which this system does not have"):
        peak_memory.peak_mib()


def test_a_checkpoint_is_synced_by_a_handle_that_can_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []

    def sync(handle: int) -> None:  # Windows refuses a handle that cannot write, as this does
        os.write(handle, b"")
        synced.append(handle)

    def save_checkpoint(path: Path, weights_only: bool) -> None:
        torch.save({"state_dict": {"w": torch.ones(2)}}, path)

    monkeypatch.setattr(os, "fsync", sync)
    (tmp_path / "checkpoints").mkdir()
    trainer: Any = SimpleNamespace(
        fast_dev_run=False, default_root_dir=tmp_path, save_checkpoint=save_checkpoint, is_global_zero=True,
        global_step=0,        strategy=SimpleNamespace(barrier=lambda name: None),
    )  # fmt: skip
    RunCheckpoint()._save(trainer)
    assert synced
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt")["state_dict"]["w"].tolist() == [1, 1]


def test_without_a_fork_server_workers_are_spawned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])  # as on Windows
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)  # no checkout
    process = workers.start("--version", log_to=tmp_path / "log.txt")
    assert type(process).__name__ == "SpawnProcess"
    process.join()
    assert process.exitcode == 0
    assert (tmp_path / "log.txt").read_text(encoding="utf-8").startswith("lit-safe ")


def test_a_study_reads_the_shipped_files_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job("c_dpo_dual", "reference_support=0.3", 1)
    monkeypatch.chdir(ROOT)
    here = Study(tmp_path).reference_inputs(), job.config
    monkeypatch.chdir(tmp_path)
    assert (Study(tmp_path).reference_inputs(), job.config) == here
    assert job.missing == []
