"""Real-time priority: this thread's, where the system allows it, and nobody else's."""

import os
import threading

import pytest

from latentplan.real_robot.loop import realtime


@pytest.fixture
def allowed():
    with realtime.real_time() as found:
        pass
    if not found:
        pytest.skip("SCHED_FIFO is not allowed here; as root, or with an rtprio limit")


def test_it_holds_inside_alone(allowed):
    before = os.sched_getscheduler(0)
    with realtime.real_time():
        assert os.sched_getscheduler(0) == os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
        assert os.sched_getparam(0).sched_priority == realtime.PRIORITY
    assert os.sched_getscheduler(0) == before


def test_what_it_starts_is_scheduled_as_usual(allowed):
    found = []
    with realtime.real_time():
        thread = threading.Thread(target=lambda: found.append(os.sched_getscheduler(0)))
        thread.start()
        thread.join()
    assert found == [os.SCHED_OTHER]


def test_where_it_is_not_allowed_nothing_changes(monkeypatch):
    def refuse(*given):
        raise PermissionError("not allowed")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    before = os.sched_getscheduler(0)
    with realtime.real_time() as found:
        assert not found and os.sched_getscheduler(0) == before
