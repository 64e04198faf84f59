"""A clock gives each part of a step the time that passes in it, without the parts inside it."""

import pytest

from lit_safe import phases
from lit_safe.phases import PhaseClock, phase


@pytest.fixture
def pass_time(monkeypatch):
    """Lets so many seconds pass on the clock's own time."""
    now = [100.0]
    monkeypatch.setattr(phases.time, "perf_counter", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def test_time_belongs_to_the_innermost_part(pass_time):
    clock = PhaseClock()
    pass_time(50)
    with clock.running("rest"):
        pass_time(1)
        with phase("forward"):
            pass_time(2)
            with phase("head"):
                pass_time(4)
            pass_time(8)
        with phase("head"):
            pass_time(16)
        pass_time(32)
    with phase("head"):
        pass_time(64)
    assert clock.seconds == {"rest": 33, "forward": 10, "head": 20}


def test_parts_inside_a_whole_one_count_as_part_of_it(pass_time):
    clock = PhaseClock()
    with clock.running("rest"), phase("backward", whole=True):
        pass_time(1)
        with phase("forward"), phase("head"):
            pass_time(2)
        with phase("again", whole=True):
            pass_time(4)
    assert clock.seconds == {"rest": 0, "backward": 7}


def test_the_device_is_waited_for_before_a_part_ends_and_begins(pass_time):
    queued = [0.0]

    def wait():
        pass_time(queued[0])
        queued[0] = 0.0

    clock = PhaseClock(wait)
    with clock.running("rest"):
        with phase("forward"):
            queued[0] = 5.0  # work that a device does later
        with phase("head"):
            pass_time(1)
    assert clock.seconds == {"rest": 0, "forward": 5, "head": 1}


def test_an_error_closes_its_part_and_the_clock(pass_time):
    clock = PhaseClock()

    def fail():
        with clock.running("rest"), phase("forward"):
            pass_time(3)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert clock.seconds == {"rest": 0, "forward": 3}
    with phase("head"):
        pass_time(1)
    assert "head" not in clock.seconds
