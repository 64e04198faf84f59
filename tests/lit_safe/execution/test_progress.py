import logging
import sys

import pytest
import torch

from lit_safe.execution import progress as progress_module
from lit_safe.execution.progress import Tracker, progress
from lit_safe.runs.progress_bar import note


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds since the start, to be moved on by hand."""
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_now_and_then_and_at_the_end(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for _ in progress(range(50), "answering prompt", seconds=10):
        clock[0] += 1
    assert caplog.messages == [
        "answering prompt 10 of 50, 0:00:40 left",
        "answering prompt 20 of 50, 0:00:30 left",
        "answering prompt 30 of 50, 0:00:20 left",
        "answering prompt 40 of 50, 0:00:10 left",
        "answering prompt 50 of 50",
    ]


def test_what_is_short_leaves_no_line_unless_its_end_matters(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert list(progress("abc", "row")) == list("abc")
    assert caplog.messages == []
    Tracker("step", 3, last=True).update(3, "loss 0.5")
    assert caplog.messages == ["step 3 of 3, loss 0.5"]


def test_a_resumed_run_estimates_the_time_left_from_its_own_steps(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    tracker = Tracker("step", 100, done=90, seconds=2)
    clock[0] = 4
    tracker.update(92, "loss 0.5")
    assert caplog.messages == ["step 92 of 100, 0:00:16 left, loss 0.5"]


def test_what_has_no_known_length_is_counted(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for _ in progress(iter("abc"), "row", seconds=2):
        clock[0] += 1
    assert caplog.messages == ["row 2"]


def test_a_terminal_gets_a_bar_and_no_lines(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(progress("abc", "row")) == list("abc")
    assert caplog.messages == []
    assert "3/3" in capsys.readouterr().err


def test_a_bar_may_stand_under_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert [b for a in progress("ab", "outer") for b in progress(a * 2, "inner")] == list("aabb")


def test_what_is_logged_while_a_bar_is_shown_stands_on_lines_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    handler = logging.StreamHandler()  # as the command line makes it, before any bar
    logger = logging.getLogger("lit_safe.execution.progress")
    logger.addHandler(handler)
    try:
        before = handler.stream
        outer = Tracker("step", 4)
        inner = Tracker("answering prompt", 2)
        logger.warning("epoch 0  cost 0.12")
        inner.close()
        outer.update(4)
        outer.close()
        assert handler.stream is before, "it writes where it wrote before"
    finally:
        logger.removeHandler(handler)
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    assert [line.split("\x1b[2K")[-1] for line in lines if "epoch 0" in line] == ["epoch 0  cost 0.12"]
    assert [line for line in lines if "4/4" in line]


def test_the_note_says_what_was_logged_and_nothing_else() -> None:
    metrics = {"train/loss": torch.tensor(0.69314), "train/perf/rows_per_s": torch.tensor(12.34), "x": torch.tensor(1)}
    assert note(metrics) == "loss 0.6931, 12.3 rows/s"
    assert note({}) == ""
