"""Shows progress of long tasks: as a bar on a terminal, otherwise as log lines."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from datetime import timedelta
from typing import TextIO, TypeVar

from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

Item = TypeVar("Item")


class _Screen:
    """The live display of a process: one bar per running task, with log messages above the bars.

    A handler of ``logging`` keeps the stream with which it was created, and would write into the bars. Handlers on
    standard error therefore write through the display while it is shown.
    """

    def __init__(self) -> None:
        self._display: Progress | None = None
        self._bars: set[TaskID] = set()
        self._moved: list[tuple[logging.StreamHandler[TextIO], TextIO]] = []

    def add(self, description: str, total: int | None, done: int) -> TaskID:
        """Add a bar."""
        if self._display is None:
            self._start()
        assert self._display is not None
        bar = self._display.add_task(description, total=total, completed=done, note="")
        self._bars.add(bar)
        return bar

    def update(self, bar: TaskID, done: int, note: str) -> None:
        """Show ``done`` in the bar."""
        if self._display is not None:
            self._display.update(bar, completed=done, note=note)

    def remove(self, bar: TaskID) -> None:
        """Remove a bar. The last bar remains visible on the screen."""
        if self._display is None or bar not in self._bars:
            return
        self._bars.remove(bar)
        if self._bars:
            self._display.remove_task(bar)
            return
        for handler, stream in self._moved:
            handler.setStream(stream)
        self._display.stop()
        self._display, self._moved = None, []

    def _start(self) -> None:
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
        console, direct = Console(stderr=True), sys.stderr
        described = TextColumn("{task.description}")
        self._display = Progress(described, *columns, console=console, redirect_stdout=sys.stdout.isatty())
        self._display.start()
        for handler in _handlers():
            if isinstance(handler, logging.StreamHandler) and handler.stream is direct:
                self._moved.append((handler, direct))
                handler.setStream(sys.stderr)


def _handlers() -> list[logging.Handler]:
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    return [handler for one in loggers if isinstance(one, logging.Logger) for handler in one.handlers]


_screen = _Screen()


class Tracker:
    """Shows ``done`` of ``total`` as a bar if standard error is a terminal, otherwise as a log line now and then.

    Args:
        description: Description of the task.
        total: Total amount of work. None if unknown.
        done: Amount of work that was done before.
        seconds: Time between two log lines. A shorter task logs nothing, unless ``last`` is set. A longer task logs its
            end.
        last: Whether the end is always logged.
    """

    def __init__(
        self, description: str, total: int | None, done: int = 0, seconds: float = 30.0, last: bool = False
    ) -> None:
        self._description, self._total, self._first = description, total, done
        self._seconds, self._last = seconds, last
        self._started = self._said = time.monotonic()
        self._bar = _screen.add(description, total, done) if sys.stderr.isatty() else None

    def update(self, done: int, note: str = "") -> None:
        """Show the amount of work ``done`` and a ``note``."""
        if self._bar is not None:
            _screen.update(self._bar, done, note)
            return
        now = time.monotonic()
        if now - self._said >= self._seconds or (done == self._total and self._last):
            self._said, self._last = now, True
            log.info("%s", ", ".join(filter(None, (self._how_far(done, now - self._started), note))))

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            _screen.remove(self._bar)

    def _how_far(self, done: int, elapsed: float) -> str:
        if self._total is None:
            return f"{self._description} {done}"
        text = f"{self._description} {done} of {self._total}"
        if done == self._total or done == self._first:
            return text
        left = elapsed / (done - self._first) * (self._total - done)
        return f"{text}, {timedelta(seconds=round(left))} left"


def progress(
    iterable: Iterable[Item], description: str, total: int | None = None, seconds: float = 30.0
) -> Iterator[Item]:
    """Yield from ``iterable`` and show the progress, on the first rank.

    Args:
        iterable: The items.
        description: Description of the task.
        total: Number of items. The default is the length of ``iterable``, if it has one.
        seconds: Time between two log lines. A shorter task logs nothing.
    """
    if getattr(rank_zero_only, "rank", 0) != 0:
        yield from iterable
        return
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    tracker = Tracker(description, total, seconds=seconds)
    try:
        for done, item in enumerate(iterable, start=1):
            yield item
            tracker.update(done)
    finally:
        tracker.close()
