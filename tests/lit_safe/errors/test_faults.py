"""Faults at random moments: no run that trained leaves without a checkpoint, and resumed it ends on the same bits."""

import errno
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_safe.constraint.costs.rollout import RolloutCost
from lit_safe.report.before_after import BeforeAfter
from lit_safe.runs.end_of_run import failures
from lit_safe.types import Prompt
from tests.lit_safe.dual_world import TableCost, Toy
from tests.lit_safe.held_out_world import HeldOut
from tests.lit_safe.runs.test_end_of_run import dual, fit, saved, state
from tests.lit_safe.runs.test_resume import assert_same_bits, rows

FAST = 2  # seeds that the fast suite runs


class Fault:
    """Fails once, at the n-th time that it is come by; counts where ``at`` is None."""

    def __init__(self, at: int | None) -> None:
        self.at, self.seen = at, 0

    def __call__(self, error: Callable[[], BaseException]) -> None:
        self.seen += 1
        if self.seen == self.at:
            raise error()


def gone() -> OSError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "scorers/mine/card.json")


class Cost(TableCost):
    """A cost function whose scorer goes away, or that gives NaN, for one call."""

    def __init__(self, fault: Fault, *, nan: bool = False) -> None:
        self.fault, self.nan = fault, nan

    def __call__(self, prompts: list[str], responses: list[str]) -> Tensor:
        costs = super().__call__(prompts, responses)
        try:
            self.fault(gone)
        except OSError:
            if not self.nan:
                raise
            costs[0] = torch.nan
        return costs


class Prompts(HeldOut):
    """Prompts to evaluate and prompts to estimate from."""

    def prompts(self, split: str) -> list[Prompt]:
        return Toy.prompts(self, split) if split == "dual" else super().prompts(split)


class Estimator(RolloutCost):
    """Dies once the rollouts are there."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(TableCost(), samples_per_prompt=3)
        self.fault = fault

    def __call__(self, module: Any, data: Any, *, seed: int, epoch: int) -> Any:
        estimate = super().__call__(module, data, seed=seed, epoch=epoch)
        self.fault(lambda: RuntimeError("CUDA error: out of memory"))
        return estimate


@contextmanager
def disk(fault: Fault, number: int) -> Iterator[None]:
    """A disk on which the n-th file opened for writing, or replaced, cannot be."""
    opened, replaced = Path.open, os.replace

    def error() -> OSError:
        return OSError(number, os.strerror(number))

    def open_(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if mode in ("wb", "w", "a"):
            fault(error)
        return opened(self, mode, *args, **kwargs)

    def replace(source: Any, target: Any) -> None:
        fault(error)
        replaced(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", open_)
        patch.setattr(os, "replace", replace)
        yield


def run(folder: Path, place: str, at: int | None, *, resume: bool = False) -> tuple[Any, Fault, list[str]]:
    """A run with a fault at a place: what it trained, the fault, and what it said of failures after training."""
    fault, none = Fault(at), Fault(None)
    estimator = Estimator(fault if place == "estimator" else none)
    estimator.cost = Cost(fault if place in ("cost", "NaN") else none, nan=place == "NaN")
    watcher = BeforeAfter(Cost(fault if place == "scorer" else none), prompts=2)
    callbacks = (watcher, dual(estimator))
    number = {"full disk": errno.ENOSPC, "read-only disk": errno.EROFS}.get(place)
    with disk(fault if number is not None else none, number or 0):
        model = fit(folder, *callbacks, resume=resume, data=Prompts())
    return model, fault, failures(callbacks)


PLACES = ("cost", "estimator", "scorer", "full disk", "NaN", "read-only disk")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, run(folder, "nowhere", None)[0]


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], int]:
    """How often an undisturbed run comes by a place."""
    known: dict[str, int] = {}

    def count(place: str) -> int:
        if place not in known:
            known[place] = run(tmp_path_factory.mktemp("count") / "run", place, None)[1].seen
        return known[place]

    return count


@pytest.mark.parametrize("seed", [pytest.param(s, marks=() if s < FAST else pytest.mark.slow) for s in range(10)])
@pytest.mark.parametrize("place", PLACES)
def test_a_fault_costs_no_step_that_was_saved_and_changes_no_bit(
    place: str, seed: int, whole: tuple[Path, Any], moments: Callable[[str], int], tmp_path: Path
) -> None:
    folder, last = tmp_path / "run", tmp_path / "run" / "checkpoints" / "last.ckpt"
    at = random.Random(f"{place} {seed}").randint(1, moments(place))
    on_disk, began = place.endswith("disk"), True
    try:
        _, fault, failed = run(folder, place, at)
        assert fault.seen >= at
        assert failed  # said, and the exit status is not 0
    except (OSError, RuntimeError, FloatingPointError, ValueError):
        began = last.exists()
        trained = (folder / "metrics.csv").exists() and any(
            "train/loss" in row and row["train/loss"] for row in rows(folder)
        )
        assert began or on_disk or not trained
    model, _, failed = run(folder, place, None, resume=began)
    assert not failed
    assert state(model) == state(whole[1])
    assert rows(folder) == rows(whole[0])
    for name in ("pairs.csv", "rollouts.csv"):
        assert (folder / name).read_text(encoding="utf-8") == (whole[0] / name).read_text(encoding="utf-8")
    ours, theirs = saved(folder), saved(whole[0])
    assert_same_bits(ours["state_dict"], theirs["state_dict"])
    assert_same_bits(ours["optimizer_states"], theirs["optimizer_states"])
    assert_same_bits(ours["callbacks"]["DualAscent"], theirs["callbacks"]["DualAscent"])
