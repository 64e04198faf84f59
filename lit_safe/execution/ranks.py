"""Communication between ranks: exchange of results, and errors that stop all ranks."""

import builtins
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lit_safe.errors.exceptions import FAULT, is_fault

T = TypeVar("T")

KNOWN = "known_to_all_ranks"  # attribute of an error that all ranks raise


class Failure(NamedTuple):
    """An error as it is sent to other ranks: its nearest built-in class, its text, and whether it is a fault of code.

    A fault is shown with a traceback on every rank, since the launcher may end the failing rank before it prints one.
    """

    kind: str
    text: str
    fault: bool


def rank_and_world() -> tuple[int, int]:
    """(rank of this process, number of processes); (0, 1) outside a distributed run."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


@contextmanager
def joined_ranks() -> Iterator[int | None]:
    """Join the processes that torchrun or a similar launcher started, for a command that has no trainer.

    Yields:
        The number of this process on its machine, None if it is alone or has joined already.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized() or "MASTER_ADDR" not in os.environ:
        yield None
        return
    dist.init_process_group("gloo")
    try:
        yield int(os.environ.get("LOCAL_RANK", "0"))
    finally:
        dist.destroy_process_group()


@contextmanager
def failing_together() -> Iterator[None]:
    """A block in which an error on one rank stops all ranks.

    The other ranks raise the error at their next exchange, or at the end of the block. All ranks must enter the block.
    Inside it they may communicate only with the functions of this file.

    Raises:
        Exception: The error of another rank, with the number of that rank. It has the same built-in class
            (``RuntimeError`` if that is not possible).
    """
    try:
        yield
    except Exception as error:
        if KNOWN not in vars(error):
            vars(error)[KNOWN] = True
            try:
                _meet(_failure(error))
            except Exception as other:  # an error of another rank must not hide this rank's own
                error.add_note(f"another rank: {other}")
        raise
    _meet()


def gather(rows: Tensor, device: torch.device) -> Tensor:
    """The rows [n, ...] of all ranks in rank order, equal on each. All ranks must have equally many rows.

    Raises:
        Exception: An error that another rank raised since the last exchange, inside ``failing_together``.
    """
    world = rank_and_world()[1]
    if world == 1:
        return rows
    _meet()
    own = rows.to(device)
    parts = [torch.empty_like(own) for _ in range(world)]
    dist.all_gather(parts, own)
    return torch.cat(parts).to(rows.device)


def of_first_rank(value: T) -> T:
    """The first rank's value, on every rank. Errors as in ``gather``."""
    if rank_and_world()[1] == 1:
        return value
    _meet()
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def merge(rows: Tensor, device: torch.device) -> Tensor:
    """The merged rows of all ranks, bitwise equal on each. Rows of other ranks must be zero in the argument.

    Errors as in ``gather``.
    """
    if rank_and_world()[1] == 1:
        return rows
    _meet()
    shared = rows.to(device)
    dist.all_reduce(shared)
    return shared.to(rows.device)


def _meet(failure: Failure | None = None) -> None:
    """Wait for the other ranks, and raise the error of one that failed."""
    rank, world = rank_and_world()
    if world == 1:
        return
    failed = torch.tensor(int(failure is not None), device=_meeting_place())
    dist.all_reduce(failed, op=dist.ReduceOp.MAX)
    if not int(failed):
        return
    failures: list[Failure | None] = [None] * world
    dist.all_gather_object(failures, failure)
    first = next((r, found) for r, found in enumerate(failures) if found is not None and (r != rank or failure is None))
    error = _error(*first)
    vars(error)[KNOWN] = True
    raise error


def _failure(error: Exception) -> Failure:
    kind = next(base.__name__ for base in type(error).__mro__ if base.__module__ == "builtins")
    if kind == "Exception":
        return Failure("RuntimeError", f"{type(error).__name__}: {error}", is_fault(error))
    return Failure(kind, str(error), is_fault(error))


def _error(rank: int, failure: Failure) -> Exception:
    text = f"{failure.text} (on rank {rank})"
    try:
        error: Exception = getattr(builtins, failure.kind)(text)
    except TypeError:  # some classes, such as UnicodeDecodeError, take other arguments than a text
        error = RuntimeError(f"{failure.kind}: {text}")
    if failure.fault:
        vars(error)[FAULT] = True
    return error


def _meeting_place() -> torch.device:
    """The device on which this process group exchanges tensors."""
    if "gloo" in str(dist.get_backend()) or not torch.accelerator.is_available():
        return torch.device("cpu")
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    return torch.device(kind.type, torch.accelerator.current_device_index())
