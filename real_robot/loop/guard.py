"""The outermost guard of a loop that drives an arm: stop, then raise."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator

from latentplan.errors import RobotError
from latentplan.real_robot.link.messages import one_line
from latentplan.real_robot.loop.supervisor import State, Supervisor
from latentplan.real_robot.robot import Driver

SPARE = 10  # ticks of a stop beyond its longest time


@contextlib.contextmanager
def stopping_first(driver: Driver, supervisor: Supervisor) -> Iterator[None]:
    """Run code that drives an arm; whatever it raises, the arm is at rest before that is raised.

    A bug and a broken driver are a fault; Ctrl-C and exits are a stop.
    """
    try:
        yield
    except BaseException as e:
        if supervisor.moving:
            reason = one_line(f"{type(e).__name__}: {e}".removesuffix(": "))
            if isinstance(e, Exception):
                supervisor.fault(reason)
            else:
                supervisor.stop(reason)
            _brake(driver, supervisor)
        raise


def _brake(driver: Driver, supervisor: Supervisor) -> None:
    """Send the setpoints of the stop; a driver that fails is tried again at each tick."""
    dt = supervisor.safety.config.dt
    ticks = math.ceil(supervisor.safety.stopping_time / dt) + supervisor.config.last_points + SPARE
    lost = False  # whether the last setpoint was not written
    with _without_interrupts():
        for _ in range(ticks):
            if supervisor.state is not State.STOPPING:
                break
            try:
                now, lost = driver.now(), True
                supervisor.steer(driver, None, now=now)
                lost = False
                driver.wait(now + dt)
            except Exception:  # what stopped the loop fails again: the rest may still get through
                time.sleep(dt)
    if lost or supervisor.state is State.STOPPING:
        raise RobotError(
            f"arm: it could not be stopped ({supervisor.reason}); use its emergency stop"
        )


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C inside, so that a second one does not cut a stop short."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
