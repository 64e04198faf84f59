"""One rank of two, one of which fails: python failing_two_ranks.py <rank> <file to meet at> <out>."""

import json
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from lit_safe.anchors.reference_mass import ReferenceMass
from lit_safe.constraint.costs.rollout import RolloutCost
from lit_safe.errors.exceptions import mistake
from lit_safe.errors.places import Words
from lit_safe.evaluation.evaluate import evaluate
from lit_safe.execution.quiet import quiet
from lit_safe.execution.ranks import failing_together, gather, merge, of_first_rank, rank_and_world
from lit_safe.runs.checkpoints import CheckpointError
from lit_safe.runs.run_checkpoint import RunCheckpoint
from lit_safe.runs.run_folder import RunFolder
from lit_safe.training.reference_cache import ReferenceCache
from tests.lit_safe.dual_world import P, Table, TableCost, Toy
from tests.lit_safe.held_out_world import HeldOut, module

CPU = torch.device("cpu")


class NoText(Exception):
    """A user's own kind of error, made of two things."""

    def __init__(self, row: int, column: str) -> None:
        super().__init__(f"row {row} has no {column}")


def on_rank(rank: int, error: Exception) -> None:
    if rank_and_world()[0] == rank:
        raise error


def before_they_meet() -> None:
    with failing_together():
        on_rank(1, ValueError("row 7 is wrong"))
        gather(torch.ones(1), CPU)


def after_they_met() -> None:
    with quiet(SimpleNamespace(pair=Table()), seed=0):
        gather(torch.ones(1), CPU)
        on_rank(0, FileNotFoundError("no scorer"))


def inside_two_blocks() -> None:
    with failing_together():
        with quiet(SimpleNamespace(pair=Table()), seed=0):
            on_rank(1, ValueError("inner"))
            merge(torch.ones(1), CPU)
        gather(torch.ones(1), CPU)


def a_kind_of_ones_own() -> None:
    with failing_together():
        on_rank(0, NoText(3, "prompt"))
        of_first_rank(1)


def both() -> None:
    with failing_together():
        raise ValueError(f"mine, {rank_and_world()[0]}")


def a_fault() -> None:
    with failing_together():
        if rank_and_world()[0] == 1:
            torch.ones(2) + torch.ones(3)
        gather(torch.ones(1), CPU)


def a_mistake() -> None:
    with failing_together():
        if rank_and_world()[0] == 1:
            Path("no such file").read_bytes()
        gather(torch.ones(1), CPU)


def says_a_mistake(case: Callable[[], None]) -> bool:
    try:
        case()
    except Exception as error:
        return mistake(error, Words([])) is not None
    raise AssertionError("no error")


class FailsOnRankOne(TableCost):
    def __call__(self, prompts: list[str], responses: list[str]) -> Any:
        on_rank(1, OSError("the scorer's file is gone"))
        return super().__call__(prompts, responses)


def rollouts() -> None:
    RolloutCost(FailsOnRankOne(), batch_size=1)(SimpleNamespace(pair=Table()), Toy(), seed=0, epoch=0)


def evaluation() -> None:
    evaluate(module(), HeldOut(), cost=FailsOnRankOne(), prompts=P, batch_size=1)


def reference_cache(folder: Path) -> Callable[[], None]:
    def write() -> None:
        cache = ReferenceCache()
        cache._known = {1: 2.0}
        cache.save(folder / "a file" / "cache.npz")  # only the first rank writes

    return write


def first_and_other() -> SimpleNamespace:
    """The part of a trainer that callbacks use to write, in a folder that cannot be written."""
    return SimpleNamespace(
        default_root_dir=sys.argv[3], fast_dev_run=False, is_global_zero=rank_and_world()[0] == 0, loggers=[],
        strategy=SimpleNamespace(barrier=lambda name: dist.barrier()), ckpt_path=None, save_checkpoint=save,
        global_step=0,
    )  # fmt: skip


def save(path: Path, weights_only: bool) -> None:
    """As Lightning does: the first rank writes, then all meet."""
    on_rank(0, CheckpointError("cannot write: no space left"))
    dist.barrier()


def full_disk() -> None:
    RunCheckpoint()._save(first_and_other())


def disk_that_fails_later() -> None:
    trainer = first_and_other()
    trainer.save_checkpoint = lambda path, weights_only: dist.barrier()
    RunCheckpoint()._save(trainer)  # there is no file to look at


def earlier_run_stays() -> None:
    folder = RunFolder()
    folder._move_aside = lambda folder: on_rank(0, OSError("read-only"))
    folder._begin(first_and_other())


def anchor() -> list[Any]:
    """How many responses this rank drew, and all that it then knows."""
    drawn: list[int] = []

    class Counting(Table):
        def generate(self, prompts: Any, *given: Any, **named: Any) -> list[list[int]]:
            drawn.append(len(prompts))
            return super().generate(prompts, *given, **named)

    mass = ReferenceMass(samples_per_prompt=5, samples_per_step=2, prompts_per_step=2, batch_size=3, seed=0)
    data = HeldOut()
    data.prompts = lambda split: HeldOut().prompts("val")[:3]
    mass.prepare(SimpleNamespace(pair=Counting(), seed=0), data)
    return [sum(drawn), mass._responses, mass._reference_PN.tolist()]


def outcome(case: Callable[[], None]) -> str:
    try:
        case()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


if __name__ == "__main__":
    rank, meeting, out = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    wait = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=meeting.as_uri(), rank=rank, world_size=2, timeout=wait)
    if rank == 0:
        (out / "a file").write_text("in the way of a folder", encoding="utf-8")
    cases = (before_they_meet, after_they_met, inside_two_blocks, a_kind_of_ones_own, both, rollouts, evaluation)
    cases += (full_disk, disk_that_fails_later, earlier_run_stays)
    found: dict[str, Any] = {case.__name__: outcome(case) for case in cases}
    found["mistakes"] = [says_a_mistake(case) for case in (a_fault, a_mistake)]
    found["reference_cache"] = outcome(reference_cache(out))
    with failing_together():
        found["afterwards"] = str(gather(torch.tensor([rank]), CPU).tolist())
    found["anchor"] = anchor()
    (out / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()
