"""``--seed_everything`` alone decides every random draw."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from lit_safe.report import before_after
from lit_safe.report.before_after import BeforeAfter
from lit_safe.runs.run_seed import DRAWN, RunSeed
from lit_safe.types import CostEstimate
from tests.lit_safe.typed_world import Run, typed

__all__ = ["typed"]  # a fixture


@pytest.fixture(autouse=True)
def _no_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (DRAWN, "WORLD_SIZE", "SLURM_NTASKS", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_a_number_is_itself_and_false_is_none() -> None:
    assert [RunSeed()(typed) for typed in (5, 0, 1, False)] == [5, 0, 1, 0]


def test_true_is_one_number_for_the_run_and_another_for_the_next() -> None:
    run, other = RunSeed(), RunSeed()
    assert run(True) == run(True)
    assert run(True) != other(True)


def test_a_rank_that_this_process_starts_has_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = RunSeed()(True)
    process = os.getpid()
    monkeypatch.setattr("lit_safe.runs.run_seed.os.getpid", lambda: process + 1)
    monkeypatch.setenv("LOCAL_RANK", "1")  # as Lightning does for the ranks that it starts
    assert RunSeed()(True) == drawn


@pytest.mark.parametrize("rank", [None, "0"])
def test_a_run_that_another_run_starts_draws_its_own_number(monkeypatch: pytest.MonkeyPatch, rank: str | None) -> None:
    drawn = RunSeed()(True)
    process = os.getpid()
    monkeypatch.setattr("lit_safe.runs.run_seed.os.getpid", lambda: process + 1)
    if rank is not None:  # Lightning sets it in the first rank too, and a process that this one starts inherits it
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert RunSeed()(True) != drawn


def test_ranks_that_others_start_cannot_agree_on_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="type a number"):
        RunSeed()(True)


def seeds(run: Any) -> list[int]:
    return [run.datamodule.seed, run.model.seed]


def estimator(module: Any, data: Any, *, seed: int, epoch: int) -> CostEstimate:
    SEEN.append(seed)
    return CostEstimate(torch.tensor(0.0), torch.tensor(0.1), 8, torch.tensor(0.5), 8.0)


SEEN: list[int] = []


def test_one_option_reaches_data_training_dual_step_and_evaluation(typed: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluated(module: Any, data: Any, *, seed: int, **options: Any) -> Any:
        SEEN.append(seed)
        raise RuntimeError("seen")

    SEEN.clear()
    run = typed("fit", "--seed_everything", "5", "--trainer.max_steps", "1")
    assert seeds(run) == [5, 5]
    [dual] = [callback for callback in run.trainer.callbacks if type(callback).__name__ == "DualAscent"]
    dual._estimate(run.trainer, run.model, estimator, 0)
    monkeypatch.setattr(before_after, "evaluate", evaluated)
    with pytest.raises(RuntimeError, match="seen"):
        BeforeAfter()._evaluate(run.trainer, run.model, "before training")
    assert SEEN == [5, 5]


def test_true_and_false_run_and_the_drawn_number_is_in_the_configuration(typed: Run) -> None:
    run = typed("fit", "--seed_everything", "true", "--trainer.max_steps", "1")
    saved = yaml.safe_load(Path("runs/x/config.yaml").read_text(encoding="utf-8"))
    assert seeds(run) == [saved["seed_everything"]] * 2
    assert type(saved["seed_everything"]) is int
    assert seeds(typed("fit", "--seed_everything", "false", "--trainer.max_steps", "1")) == [0, 0]


def test_a_seed_of_its_own_wins() -> None:
    module: Any = SimpleNamespace(seed=5)
    assert [BeforeAfter(seed=seed)._seed(module) for seed in (None, 0, 3)] == [5, 0, 3]
