"""The faults of an arm, its camera, its planner and its other clients, by name.

`trial(rig, name)` injects one in motion; `FAULTS` are cleared afterwards, `LAST` cannot be.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from real.harness import Rig
from real.process import HERE
from real.record import DT, Row

from latentplan.real_robot.link.remote import emergency_stop

ROS = ("ros2", "ros1", "rosbridge")
BACKENDS = ("sim", *ROS)


@dataclass(frozen=True)
class Fault:
    """A fault; `inject` returns when it begins, `clear` ends it."""

    inject: Callable[[Rig], float]
    clear: Callable[[Rig], object] = lambda rig: None
    limit: float | None = None  # ms until it stops, at most; None: it does not stop
    backends: tuple[str, ...] = BACKENDS  # that can have it


def _halt(name: str, limit: float) -> Fault:
    """Return the fault of a process that hangs; if it is part of the node, of its sensor."""
    fault = {"camera": "blind", "arm": "silent"}.get(name, "")

    def inject(rig: Rig) -> float:
        if name in rig.processes:
            return rig.processes[name].signal(signal.SIGSTOP)
        return rig.write(name, fault)

    def clear(rig: Rig) -> object:
        if name in rig.processes:
            return rig.processes[name].signal(signal.SIGCONT)
        return rig.write(name, "fine")

    return Fault(inject, clear, limit)


def _sensors(fault: str, limit: float | None = None, backends: tuple[str, ...] = BACKENDS) -> Fault:
    """Return a fault of the arm's sensors, from the first message that has it."""

    def inject(rig: Rig) -> float:
        rig.write("arm", fault)
        line = rig.process("arm").until(lambda line: f'"fault": "{fault}"' in line)
        return float(json.loads(line)["t"])

    return Fault(inject, lambda rig: rig.write("arm", "fine"), limit, backends)


def _planner(fault: str, limit: float) -> Fault:
    """Return a fault of the planner, from the time at which it is written to it."""
    return Fault(
        lambda rig: rig.write("planner", fault), lambda rig: rig.write("planner", "fine"), limit
    )


def _kill(rig: Rig, name: str) -> float:
    return rig.processes[name].signal(signal.SIGKILL)


def _new_camera(rig: Rig) -> None:
    assert rig.setup.camera is not None
    rig.start("camera", rig.setup.camera)
    rig.ready("camera")


def _action(fault: str, limit: float | None = None) -> Fault:
    """Return the fault of a planner whose actions are wrong, from the time of the first one."""

    def inject(rig: Rig) -> float:
        rig.write("planner", fault)
        return float(rig.processes["planner"].event("sent")["t"])

    return Fault(inject, lambda rig: rig.write("planner", "fine"), limit)


def _stop(rig: Rig) -> float:
    now = time.monotonic()
    emergency_stop(rig.address)
    return now


def _slow_ticks(rig: Rig) -> float:
    """Let four ticks in a row come late."""
    node = rig.processes["node"]
    begin = time.monotonic()
    for _ in range(4):
        node.signal(signal.SIGSTOP)
        time.sleep((1.5 * rig.patience + 0.7) * DT)
        node.signal(signal.SIGCONT)
        time.sleep(0.15 * DT)
    return begin


def _client(kind: str) -> Fault:
    """Return the fault of a hostile client, from the time at which it is ready."""

    def inject(rig: Rig) -> float:
        rig.start("client", [str(HERE / "hostile_client.py"), str(rig.port), kind])
        rig.ready("client")
        return time.monotonic()

    return Fault(inject, lambda rig: rig.processes.pop("client").end())


def _stop_in_flood(rig: Rig) -> float:
    _client("flood").inject(rig)
    time.sleep(0.3)
    return _stop(rig)


FAULTS: dict[str, Fault] = {
    "camera hangs": _halt("camera", 250),
    "camera killed": Fault(lambda rig: _kill(rig, "camera"), _new_camera, 250, ROS),
    "joint states stop": _halt("arm", 120),
    "joint states frozen": _sensors("frozen", 120),
    "joint states reordered": _sensors("reordered"),
    "joint missing": _sensors("missing", 60),
    "joint of another name": _sensors("renamed", 60),
    "joint not finite": _sensors("nan", 60),
    "velocity not finite": _sensors("nan velocity", backends=ROS),
    "clock jumps": _sensors("jumping", 60),
    "clock jumps back": _sensors("jumping back", 60),
    "clock not finite": _sensors("nan stamp", 60, ("sim",)),  # ROS has whole numbers
    "planner hangs": _halt("planner", 350),
    "planner killed": Fault(lambda rig: _kill(rig, "planner"), lambda rig: rig.start_planner(), 60),
    "planner answers what is old": _planner("late", 350),
    "old commands replayed": _planner("replay", 350),
    "nan action": _action("nan", 60),
    "infinite action": _action("infinite", 60),
    "action of wrong shape": _action("shape", 60),
    "action of 5e5 rad/s": _action("huge"),
    "ticks come late": Fault(_slow_ticks, limit=250),
    "client sends garbage": _client("garbage"),
    "client sends without pause": _client("flood"),
    "clients send byte by byte": _client("trickle"),
    "hundreds of connections": _client("connections"),
    # The next tick slows the arm down, up to 20 ms later; its setpoint has a way to the driver.
    "emergency stop": Fault(_stop, limit=40),
    "emergency stop in a flood": Fault(_stop_in_flood, _client("flood").clear, 40),
}
LAST: dict[str, Fault] = {  # after which the rig is of no more use
    "master killed": Fault(lambda rig: _kill(rig, "before0"), limit=500, backends=("ros1",)),
}


def trial(rig: Rig, name: str) -> Row:
    """Return the outcome of a fault in motion."""
    fault = (FAULTS | LAST)[name]
    rig.cruise()
    begin = fault.inject(rig)
    time.sleep(0.7 + rig.patience * (fault.limit or 300) / 1e3)
    fault.clear(rig)
    time.sleep(0.4)
    return rig.measure(name, begin)
