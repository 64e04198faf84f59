"""The command that a run names at its end."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lit_safe.constraint.costs.importance import ImportanceCost
from lit_safe.constraint.costs.rollout import RolloutCost
from lit_safe.constraint.dual_ascent import DualAscent
from lit_safe.constraint.limits import Standing
from lit_safe.constraint.safety_margin import CertifiedWith
from lit_safe.screen.closing import certify_options, next_command
from tests.lit_safe.screen.test_screen import Long


class Declared(Long):
    """Costs with a declared range."""

    range = (-2.0, 20.0)


@pytest.mark.parametrize(
    ("cost", "margin_for", "options"),
    [
        (Long(), CertifiedWith(), ["--cost_range", "[LOW, HIGH]"]),
        (Long(), CertifiedWith(cost_range=[-3.0, 2.5]), ["--cost_range", "[-3, 2.5]"]),
        (Declared(), CertifiedWith(), []),
        (None, CertifiedWith(), None),
    ],
)
def test_a_run_with_a_limit_is_told_how_to_certify_it(cost: Any, margin_for: CertifiedWith, options: Any) -> None:
    dual = DualAscent(estimator=ImportanceCost() if cost is None else RolloutCost(cost), margin_for=margin_for)
    run: Any = SimpleNamespace(callbacks=[dual], datamodule=SimpleNamespace(held_out=True))
    assert certify_options(run) is None, "no cost was estimated"
    dual.standing = Standing(("cost",), (0.0,), (0.1,), (0.01,), 9.0, 0)
    assert certify_options(run) == options
    run.datamodule.held_out = False
    assert certify_options(run) is None


def test_the_next_command_is_the_one_that_fits_the_run_folder(tmp_path: Path) -> None:
    here, other = tmp_path / "here", tmp_path / "other"
    for folder in (here, other):
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "report.json").write_text("{}", encoding="utf-8")
    assert next_command(here, failed=False) == "", "a run from Python has no configuration to export by"
    (here / "config.yaml").write_text("", encoding="utf-8")
    (here / "checkpoints" / "last.ckpt").write_text("", encoding="utf-8")
    assert next_command(here, failed=True) == f"python train.py report {here}"
    compare, export = next_command(here, failed=False).split(", or ")
    assert compare == f"python train.py compare {other} {here}"
    assert export == (
        f"python train.py export -c {here}/config.yaml --ckpt_path {here}/checkpoints/last.ckpt --out {here}-export"
    )
    certify, after = next_command(here, failed=False, certify=["--cost_range", "[-1, 1]"]).split(", or ")
    assert certify == (
        f"python train.py certify -c {here}/config.yaml --ckpt_path {here}/checkpoints/last.ckpt --cost_range '[-1, 1]'"
    )
    assert after == export
    (other / "report.json").unlink()
    assert next_command(here, failed=False) == export
    (here / "checkpoints" / "best.ckpt").write_text("", encoding="utf-8")
    assert "checkpoints/best.ckpt" in next_command(here, failed=False)


@pytest.mark.parametrize(
    ("program", "start"),
    [
        ("train.py", "python train.py "),
        ("/opt/bin/lit-safe", "lit-safe "),
        ("/opt/lib/lit_safe/__main__.py", "python -m lit_safe "),
        ("mine.py", "python train.py "),
    ],
)
def test_the_next_command_begins_as_the_run_was_begun(
    program: str, start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [program])
    (tmp_path / "checkpoints").mkdir()
    for name in ("config.yaml", "checkpoints/last.ckpt"):
        (tmp_path / name).write_text("", encoding="utf-8")
    assert next_command(tmp_path, failed=True).startswith(f"{start}report ")
