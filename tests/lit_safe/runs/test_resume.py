"""Killed anywhere and resumed, a run ends with the bits of the run that nobody killed."""

import csv
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

SCRIPT = Path(__file__).with_name("resumable_run.py")
ROOT = SCRIPT.parents[2]

Fit = Callable[..., tuple[int, dict[str, int]]]
Whole = Callable[[str], tuple[Path, dict[str, int]]]

VARIANTS = ("validates within epochs", "validates at epoch ends", "stops within an epoch", "ships the average")
PLACES = ("micro_batch", "dual", "half a checkpoint", "validation", "step", "logging", "whole checkpoint", "end")
FAST = 4  # seeds that the fast suite runs


@pytest.fixture(scope="module")
def fit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fit]:
    """Fits in a child of one helper process: (exit code, how often it came by each place)."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    log = tmp_path_factory.mktemp("helper") / "log"
    with (
        log.open("w", encoding="utf-8") as errors,
        subprocess.Popen(
            [sys.executable, str(SCRIPT)],
            cwd=log.parent,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
        ) as helper,
    ):
        assert helper.stdin is not None
        assert helper.stdout is not None
        stdin, stdout = helper.stdin, helper.stdout

        def ask(folder: Path, variant: str, place: str | None = None, count: int = 0, max_epochs: int | None = None):
            stdin.write(json.dumps([str(folder), variant, place, count, max_epochs]) + "\n")
            stdin.flush()
            code, tally = json.loads(stdout.readline())
            assert code in (0, -9), log.read_text(encoding="utf-8")
            return code, tally

        yield ask
        stdin.close()


@pytest.fixture(scope="module")
def uninterrupted(fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The run of a variant that nobody kills, and how often it comes by each place."""
    done: dict[str, tuple[Path, dict[str, int]]] = {}

    def run(variant: str) -> tuple[Path, dict[str, int]]:
        if variant not in done:
            folder = tmp_path_factory.mktemp("whole") / "run"
            code, tally = fit(folder, variant)
            assert code == 0
            done[variant] = folder, tally
        return done[variant]

    return run


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k != "time" and "/perf/" not in k} for row in csv.DictReader(file)]


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if "/perf/" not in tag]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def checkpoint(folder: Path) -> dict[str, Any]:
    stored = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    position = stored["callbacks"]["RunFolder"]["position"]
    stored["callbacks"]["RunFolder"]["position"] = {"metrics.csv": position["metrics.csv"]}  # event files have names
    # counts of validation batches, which Lightning sets to 0 after the sanity check of a resumed run
    del stored["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
    return stored


def assert_same_bits(a: Any, b: Any, where: str = "checkpoint") -> None:
    assert type(a) is type(b), where
    if isinstance(a, Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same_bits(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for index, (left, right) in enumerate(zip(a, b, strict=True)):
            assert_same_bits(left, right, f"{where}[{index}]")
    else:
        assert a == b or (a != a and b != b), where


def assert_same_run(folder: Path, whole: Path) -> None:
    assert_same_bits(checkpoint(folder), checkpoint(whole))
    assert rows(folder) == rows(whole)
    assert curves(folder) == curves(whole)


@pytest.mark.parametrize("seed", [pytest.param(s, marks=() if s < FAST else pytest.mark.slow) for s in range(20)])
def test_a_run_killed_and_resumed_ends_like_one_that_was_not(
    seed: int, fit: Fit, uninterrupted, tmp_path: Path
) -> None:
    draw = random.Random(seed)
    variant, place = draw.choice(VARIANTS), PLACES[seed % len(PLACES)]
    whole, tally = uninterrupted(variant)
    folder = tmp_path / "run"
    code, _ = fit(folder, variant, place, draw.randint(1, tally[place]))
    assert code == -9
    for _ in range(draw.randint(0, 2)):  # and perhaps again, soon after
        fit(folder, variant, draw.choice(PLACES), draw.randint(1, 4))
    code, _ = fit(folder, variant)
    assert code == 0
    assert_same_run(folder, whole)


def test_a_finished_run_given_more_epochs_is_the_longer_run(fit: Fit, uninterrupted: Whole, tmp_path: Path) -> None:
    variant = "at a constant rate"
    whole, _ = uninterrupted(variant)
    for epochs in (1, 2, 3):
        assert fit(tmp_path / "run", variant, max_epochs=epochs)[0] == 0
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.parametrize("count", [1, 2])
def test_a_run_killed_in_its_last_dual_step_ends_when_resumed_and_can_be_given_more_epochs(
    count: int, fit: Fit, uninterrupted: Whole, tmp_path: Path
) -> None:
    variant, folder = "at a constant rate", tmp_path / "run"
    whole, _ = uninterrupted(variant)
    assert fit(folder, variant, "dual", count, max_epochs=2)[0] == -9
    assert checkpoint(folder)["global_step"] == 7 * count  # the epoch's last step
    assert fit(folder, variant, max_epochs=2)[0] == 0
    assert fit(folder, variant)[0] == 0
    assert_same_run(folder, whole)


def test_a_finished_run_that_ships_its_average_given_more_epochs_is_the_longer_run(
    fit: Fit, uninterrupted: Whole, tmp_path: Path
) -> None:
    variant = "ships an average at a constant rate"
    whole, _ = uninterrupted(variant)
    for epochs in (1, 2, 3):
        assert fit(tmp_path / "run", variant, max_epochs=epochs)[0] == 0
    assert_same_run(tmp_path / "run", whole)


def test_a_finished_run_resumed_stays_as_it_is(fit: Fit, uninterrupted: Whole) -> None:
    for variant in VARIANTS[:2]:
        whole, _ = uninterrupted(variant)
        before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
        assert fit(whole, variant)[0] == 0
        assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before
