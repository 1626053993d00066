"""An arm, a camera, a node, a planner and a recorder, each a process; faults; what they come to.

    with Rig(STATIONS, folder) as rig:      # starts all, waits until each is ready
        row = rig.suffer("nan action")      # moves, injects the fault, measures; see FAULTS
        rig.go()                            # what a person does afterwards: reset, arm, move on

A backend is a `Stations`: the command lines of its processes. The arm obeys the words of
`real.words` on stdin, the camera may be halted, the recorder writes a line of JSON for every
command and every joint state that goes over the transport, with the machine's monotonic clock,
which all processes share. Everything is judged by that record and by what the node says to a guest.
"""

from __future__ import annotations

import json
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from real.record import DT, Commands, Joints, Row
from real.station import HERE, Station

from latentplan.real_robot.link.messages import Channel, Message
from latentplan.real_robot.link.remote import emergency_stop

SPEED = 0.5  # rad/s, of the first joint
WIDE = ("safety.low=[-2,-2,-2]", "safety.high=[2,2,2]")  # the box is not what is tested here
AGES = {  # s, the defaults; late: ticks
    "supervisor.joints_age": 0.09,
    "supervisor.image_age": 0.2,
    "supervisor.clock_jump": 0.5,
    "supervisor.late": 1.5,
    "safety.age": 0.3,
}
STILL = 5e-3  # rad/s
STEADY = 5  # commands


@dataclass(frozen=True)
class Stations:
    """The processes around one arm, as command lines of this python; `{file}` is the record's.

    One that is None is part of the node's process, and so are its words.
    """

    backend: str
    arm: tuple[str, ...] | None = None
    camera: tuple[str, ...] | None = None
    recorder: tuple[str, ...] | None = None
    before: tuple[tuple[str, ...], ...] = ()  # what runs first: a master, a bridge
    settings: tuple[str, ...] = ()  # of the node
    environment: Mapping[str, str] = field(default_factory=dict)


class Rig:
    """All processes around one arm."""

    def __init__(
        self,
        stations: Stations,
        folder: Path,
        *,
        settings: Sequence[str] = (),
        patience: float = 1.0,
        busy: bool = False,
    ) -> None:
        """Take whom to start; `settings` are the node's, `busy` is a planner that keeps torch so.

        `patience` is a factor on all ages that the node allows, for machines that have other work.
        """
        self.stations, self.folder, self.patience, self.busy = stations, folder, patience, busy
        ages = [f"{name}={patience * age}" for name, age in AGES.items()] if patience > 1 else []
        self.settings = (*WIDE, *ages, *stations.settings, *settings)
        self.file = folder / "record.jsonl"
        self.port = _free_port()
        self.address = "127.0.0.1", self.port
        self.processes: dict[str, Station] = {}
        self.random = random.Random(0)
        self.begun = 0.0  # s, when the arm was armed last

    def __enter__(self) -> Self:
        try:
            self._start_all()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in reversed(list(self.processes)):
            self.processes.pop(name).end()

    def _start_all(self) -> None:
        stations = self.stations
        for i, command in enumerate(stations.before):
            self.start(f"before{i}", command)
        given = {"arm": stations.arm, "recorder": stations.recorder, "camera": stations.camera}
        for name, command in given.items():
            if command is not None:
                self.start(name, command)
        self.start("node", self.node_command(self.port))
        for name in (*given, "node"):
            if name in self.processes:
                self.ready(name)
        self.start_planner()

    def start(self, name: str, command: Sequence[str]) -> None:
        """Start a process; where one of that name runs, it is ended first."""
        if name in self.processes:
            self.processes.pop(name).end()
        filled = [sys.executable, *(word.replace("{file}", str(self.file)) for word in command)]
        self.processes[name] = Station(filled, self.stations.environment)

    def ready(self, name: str) -> None:
        """Wait until a process says that it is ready."""
        self.processes[name].until(lambda line: line.startswith("ready"))

    def node_command(self, port: int) -> list[str]:
        """Return the command line of a node for this arm."""
        script = [str(HERE / "node.py"), self.stations.backend, "front", str(port), "{file}"]
        return [*script, *self.settings]

    def start_planner(self) -> None:
        """Start a planner, in place of the one that is there."""
        busy = ["busy"] if self.busy else []
        self.start("planner", [str(HERE / "planner.py"), str(self.port), str(SPEED), *busy])

    def tell(self, station: str, word: str) -> float:
        """Tell the arm or the planner a word; return when."""
        now = time.monotonic()
        self.processes[station if station in self.processes else "node"].tell(word)
        return now

    def go(self, *, tries: int = 60) -> None:
        """Do what a person does after a stop: wait until it rests, reset, arm; then it moves."""
        planner = self.processes["planner"]
        answers = '"event": "armed"', '"event": "refused"'
        for _ in range(tries):
            self.begun = self.tell("planner", "go")
            line = planner.until(lambda said: any(answer in said for answer in answers))
            if answers[0] in line:
                return
            time.sleep(0.25)
        raise AssertionError(f"it cannot be armed: {line}")

    def cruise(self) -> None:
        """Go, and wait until the arm is commanded at a steady speed, however slow the machine."""
        self.go()
        end = time.monotonic() + 20
        looked = time.monotonic()
        while not self._steady():
            assert time.monotonic() < end, f"it does not reach its speed: {self.health()}"
            time.sleep(0.02)
            if time.monotonic() - looked > 1:
                looked = time.monotonic()
                if self.health()["state"] == "fault":  # a driver that a busy machine held up
                    self.go()
        time.sleep(0.1 * self.random.random())  # it must not matter when in a tick a fault comes

    def _steady(self) -> bool:
        """Whether the last commands since the arm was armed are all at full speed."""
        with self.file.open("rb") as file:
            file.seek(max(0, self.file.stat().st_size - 40_000))
            rows = [json.loads(line) for line in file.read().split(b"\n")[1:-1]]
        sent = [row["q"][0] for row in rows if row["topic"] == "command" and row["t"] > self.begun]
        speeds = np.abs(np.diff(sent[-STEADY - 1 :])) / DT
        return len(speeds) == STEADY and np.allclose(speeds, SPEED, rtol=0.01)

    def health(self) -> dict[str, Any]:
        """Return how the node says that the arm is."""
        return self.ask("health")["health"]

    def ask(self, kind: str, **values: Any) -> dict[str, Any]:
        """Return the node's reply to a guest."""
        channel = Channel(socket.create_connection(self.address, timeout=20))
        try:
            channel.tell(Message(kind, {"id": 1, **values}))
            end = time.monotonic() + 10
            while time.monotonic() < end:
                for message in channel.heard():
                    return dict(message.values)
                time.sleep(0.001)
        finally:
            channel.close()
        raise AssertionError("the node does not answer")

    def suffer(self, name: str) -> Row:
        """Return what the fault of that name comes to, in motion."""
        fault = (FAULTS | LAST)[name]
        self.cruise()
        begin = fault.inject(self)
        time.sleep(0.7 + self.patience * (fault.limit or 300) / 1e3)
        fault.clear(self)
        time.sleep(0.4)
        return self.measure(name, begin)

    def record(self, since: float, until: float = np.inf) -> tuple[Commands, Joints]:
        """Return what was recorded between two times, s."""
        rows = [json.loads(line) for line in self.file.read_text().splitlines() if line[-1] == "}"]
        joints = max((len(row["q"]) for row in rows), default=0)
        rows = [row for row in rows if since <= row["t"] <= until and len(row["q"]) == joints]
        chosen = [[row for row in rows if row["topic"] == topic] for topic in ("command", "joints")]
        commands, joints = ([(row["t"], *row["q"]) for row in part] for part in chosen)
        speeds = [row["dq"] for row in chosen[1]]
        return Commands(np.array(commands)), Joints(np.array(joints), np.array(speeds))

    def measure(self, name: str, begin: float) -> Row:
        """Return what the record since the arm was armed says of a fault at `begin` s."""
        commands, joints = self.record(self.begun)
        limits = self.limits()
        health = self.health()
        assert len(commands.rows) > 10, f"{name}: it did not move: {health}"
        before = commands.rows[:, 0] < begin
        steady = np.abs(commands.speeds[before[1:], 0])[-STEADY:]
        # A planner delayed by a busy machine costs a tick of deceleration, 0.0125 rad/s.
        assert np.allclose(steady, SPEED, rtol=0.05), f"{name}: {steady} rad/s before it; {health}"
        slow = ~before[1:] & (np.abs(commands.speeds[:, 0]) < 0.995 * SPEED)
        reaction = commands.rows[1:, 0][slow][:1]
        moving = joints.rows[:, 0][np.abs(joints.dq).max(1) > STILL]
        heard = joints.rows[joints.rows[:, 0] > begin, 0]
        if len(heard) and np.diff(heard, prepend=begin).max() < 0.1:
            rest = moving.max()
        else:  # the arm's driver is what failed: when it was told to be at rest
            sent = commands.rows[1:, 0][np.abs(commands.speeds).max(1) > STILL]
            rest = sent.max()
        stopped = health["state"] in ("fault", "hold")
        late = commands.rows[1:, 0] > rest + 0.05
        held = stopped and not (np.abs(commands.speeds[late]) > STILL).any()
        return Row(
            self.stations.backend,
            name,
            round(1e3 * (reaction[0] - begin), 1) if stopped and len(reaction) else None,
            round(1e3 * (rest - begin), 1) if stopped else None,
            bool(held),
            health["reason"],
            round(float((np.abs(commands.speeds) / limits[0]).max()), 4),
            round(float((np.abs(np.diff(commands.speeds, axis=0)) / DT / limits[1]).max()), 4),
            int((~np.isfinite(commands.rows)).any(1).sum()),
        )

    def end_node(self, name: str, number: signal.Signals) -> Row:
        """Return what it comes to when the node is sent a signal that ends it, in motion."""
        self.cruise()
        node = self.processes.pop("node")
        begin = node.signal(number)
        time.sleep(1.0)
        commands, joints = self.record(self.begun)
        limits, speeds = self.limits(), np.abs(commands.speeds)
        after = commands.rows[1:, 0] > begin
        slow = commands.rows[1:, 0][after & (speeds[:, 0] < 0.995 * SPEED)]
        moving = joints.rows[:, 0][np.abs(joints.dq).max(1) > STILL]
        node.end()
        return Row(
            self.stations.backend,
            name,
            round(1e3 * (slow[0] - begin), 1) if len(slow) else None,
            round(1e3 * (moving.max() - begin), 1) if len(joints.rows) else None,
            not joints.rows[-1, 0] - moving.max() < 0.2,
            f"exit code {node.popen.returncode}",
            round(float((speeds / limits[0]).max()), 4),
            round(float((np.abs(np.diff(commands.speeds, axis=0)) / DT / limits[1]).max()), 4),
            int((~np.isfinite(commands.rows)).any(1).sum()),
        )

    def limits(self) -> Any:
        """Return the limits of velocity and acceleration (2, J) that the node was set to."""
        from latentplan import config
        from latentplan.real_robot.loop.safety import SafetyFilter
        from latentplan.robots import description

        own = [word for word in self.settings if word.startswith("safety.")]
        settings = config.load({"safety": SafetyFilter.Config}, overrides=own)["safety"]
        limits = SafetyFilter(description.load("panda"), settings).limits
        return np.array([limits.velocity, limits.acceleration])


@dataclass(frozen=True)
class Fault:
    """What goes wrong; `inject` returns when, `clear` mends it."""

    inject: Callable[[Rig], float]
    clear: Callable[[Rig], object] = lambda rig: None
    limit: float | None = None  # ms until it stops, at most; None: it does not stop
    backends: tuple[str, ...] = ("sim", "ros2", "ros1", "rosbridge")  # that can have it


def _halt(station: str) -> Fault:
    """Return the fault of a process that hangs; where it is in the node, of its sensor."""
    word = {"camera": "blind", "arm": "silent"}.get(station, "")

    def inject(rig: Rig) -> float:
        if station in rig.processes:
            return rig.processes[station].signal(signal.SIGSTOP)
        return rig.tell(station, word)

    def clear(rig: Rig) -> object:
        if station in rig.processes:
            return rig.processes[station].signal(signal.SIGCONT)
        return rig.tell(station, "fine")

    return Fault(inject, clear)


def _word(station: str, word: str) -> Fault:
    """Return the fault of a word; it begins when an arm sends the first message like that."""

    def inject(rig: Rig) -> float:
        begin = rig.tell(station, word)
        if station != "arm":
            return begin
        told = rig.processes[station if station in rig.processes else "node"]
        line = told.until(lambda said: f'"word": "{word}"' in said)
        return float(json.loads(line)["t"])

    return Fault(inject, lambda rig: rig.tell(station, "fine"))


def _kill(rig: Rig, station: str) -> float:
    return rig.processes[station].signal(signal.SIGKILL)


def _new_camera(rig: Rig) -> None:
    assert rig.stations.camera is not None
    rig.start("camera", rig.stations.camera)
    rig.ready("camera")


def _sent(word: str) -> Fault:
    """Return the fault of a planner whose actions are wrong, from when it has sent one."""

    def inject(rig: Rig) -> float:
        rig.tell("planner", word)
        return float(rig.processes["planner"].event("sent")["t"])

    return Fault(inject, lambda rig: rig.tell("planner", "fine"))


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


def _guest(kind: str) -> Fault:
    """Return the fault of a client that means harm, from when it begins."""

    def inject(rig: Rig) -> float:
        rig.start("guest", [str(HERE / "guests.py"), str(rig.port), kind])
        rig.ready("guest")
        return time.monotonic()

    return Fault(inject, lambda rig: rig.processes.pop("guest").end())


def _stop_in_flood(rig: Rig) -> float:
    _guest("flood").inject(rig)
    time.sleep(0.3)
    return _stop(rig)


def _of(fault: Fault, *backends: str) -> Fault:
    return replace(fault, backends=backends)


def _within(fault: Fault, limit: float | None) -> Fault:
    return replace(fault, limit=limit)


FAULTS: dict[str, Fault] = {
    "camera hangs": _within(_halt("camera"), 250),
    "camera killed": Fault(lambda rig: _kill(rig, "camera"), _new_camera, 250),
    "joint states stop": _within(_halt("arm"), 120),
    "joint states frozen": _within(_word("arm", "frozen"), 120),
    "joint states reordered": _word("arm", "reordered"),
    "joint missing": _within(_word("arm", "missing"), 60),
    "joint of another name": _within(_word("arm", "renamed"), 60),
    "joint not finite": _within(_word("arm", "nan"), 60),
    "velocity not finite": _of(_word("arm", "nan velocity"), "ros2", "ros1", "rosbridge"),
    "clock jumps": _within(_word("arm", "jumping"), 60),
    "clock jumps back": _within(_word("arm", "jumping back"), 60),
    "clock not finite": _of(_within(_word("arm", "nan stamp"), 60), "sim"),  # ROS has whole numbers
    "planner hangs": _within(_halt("planner"), 350),
    "planner killed": Fault(lambda rig: _kill(rig, "planner"), lambda rig: rig.start_planner(), 60),
    "planner answers what is old": _within(_word("planner", "late"), 350),
    "old commands replayed": _within(_word("planner", "replay"), 350),
    "nan action": _within(_sent("nan"), 60),
    "infinite action": _within(_sent("infinite"), 60),
    "action of wrong shape": _within(_sent("shape"), 60),
    "action of 5e5 rad/s": Fault(_sent("huge").inject, _sent("huge").clear),
    "ticks come late": Fault(_slow_ticks, limit=250),
    "guest sends garbage": _guest("garbage"),
    "guest sends without pause": _guest("flood"),
    "guests send byte by byte": _guest("trickle"),
    "hundreds of connections": _guest("connections"),
    "emergency stop": Fault(_stop, limit=20),
    "emergency stop in a flood": Fault(_stop_in_flood, _guest("flood").clear, 20),
}
LAST: dict[str, Fault] = {  # what starts before all the others ends, and nothing mends that
    "master killed": Fault(lambda rig: _kill(rig, "before0"), limit=500),
}


def to_json(row: Row) -> dict[str, Any]:
    """Return a row with the limit of its fault."""
    return asdict(row) | {"limit_ms": (FAULTS | LAST)[row.fault].limit}


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
