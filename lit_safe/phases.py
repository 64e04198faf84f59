"""Names the parts of a training step, so that a profile can say where its time goes.

A part is a context: ``with phase("head"): ...``. It does nothing unless a ``PhaseClock`` is running.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

from torch.profiler import record_function

_running: ContextVar[PhaseClock | None] = ContextVar("running", default=None)
_NOTHING: AbstractContextManager[None] = nullcontext()


def phase(name: str, *, whole: bool = False) -> AbstractContextManager[None]:
    """A part of a step.

    Args:
        name: Its name in a profile and in a trace.
        whole: Parts inside it count as part of it.
    """
    clock = _running.get()
    return _NOTHING if clock is None else clock.within(name, whole)


class PhaseClock:
    """Measures the time of each part, without the parts inside it.

    A device that works in the background is waited for at both ends of every part. This adds up to the time of a step
    that waits, which is longer than that of a step that does not.

    Args:
        wait: Waits for the device.

    Attributes:
        seconds: Seconds of each part, by name.
    """

    def __init__(self, wait: Callable[[], None] = lambda: None) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._wait = wait
        self._open: list[tuple[str, bool]] = []
        self._turned = 0.0

    @contextmanager
    def running(self, rest: str) -> Iterator[None]:
        """Measure what happens within this context. Time outside every part counts as ``rest``."""
        token = _running.set(self)
        try:
            with self.within(rest):
                yield
        finally:
            _running.reset(token)

    @contextmanager
    def within(self, name: str, whole: bool = False) -> Iterator[None]:
        """A part of what is measured."""
        if self._open and self._open[-1][1]:
            yield
            return
        self._turn()
        self._open.append((name, whole))
        try:
            with record_function(name):
                yield
        finally:
            self._turn()
            self._open.pop()

    def _turn(self) -> None:
        """Give the time since the last turn to the innermost open part."""
        self._wait()
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1][0]] += now - self._turned
        self._turned = now
