"""Writes checkpoints in a thread, from a copy, while training goes on."""

import copy
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class BackgroundWriter:
    """Does one piece of work at a time in a thread of its own. An error of the work is raised by ``wait``."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin ``work``. The work before must have been waited for."""
        assert self._thread is None

        def run() -> None:
            try:
                work()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=run, name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Wait for the work that was begun, if any.

        Raises:
            BaseException: The error of the work.
        """
        if self._thread is None:
            return
        self._thread.join()
        self._thread, error, self._error = None, self._error, None
        if error is not None:
            raise error


def snapshot(state: Any) -> Any:
    """A copy of a checkpoint in the memory of the CPU, which training does not change.

    Args:
        state: Mappings, lists and tuples of tensors and plain values. A tensor that is there twice is copied once.
    """
    return _copied(state, {})


@torch.no_grad()
def _copied(state: Any, made: dict[int, Tensor]) -> Any:
    if isinstance(state, Tensor):
        if id(state) not in made:
            made[id(state)] = state.detach().to("cpu", copy=True)
        return made[id(state)]
    if isinstance(state, dict):
        found = copy.copy(state)  # an OrderedDict of a module keeps its metadata
        found.update([(key, _copied(value, made)) for key, value in state.items()])
        return found
    if type(state) in (list, tuple):
        return type(state)(_copied(value, made) for value in state)
    return copy.deepcopy(state)
