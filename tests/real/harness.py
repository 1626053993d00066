"""An arm, a camera, a node, a planner and a recorder, each a process, and what they record.

    with Rig(SETUP, folder) as rig:         # starts all, waits until each is ready
        row = trial(rig, "nan action")      # moves, injects the fault, measures; see real.faults
        rig.go()                            # what a person does afterwards: reset, arm, move on

A backend is a `Setup`: the command lines of its processes. The arm has the fault of
`real.sensor_faults` that is written to its stdin, the camera may be halted, the recorder writes a
line of JSON for every command and every joint state that goes over the transport, with the
machine's monotonic clock, which all processes share. Everything is judged by that record and by the
node's replies to a client.
"""

from __future__ import annotations

import json
import random
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from real.process import HERE, Process
from real.record import DT, Commands, Joints, Row

from latentplan.real_robot.link.messages import Channel, Message

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
class Setup:
    """The processes around one arm, as command lines of this python; `{file}` is the record's.

    One that is None is part of the node's process, which then has its faults.
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
        setup: Setup,
        folder: Path,
        *,
        settings: Sequence[str] = (),
        patience: float = 1.0,
        busy: bool = False,
    ) -> None:
        """Take the setup; `settings` are the node's, `busy` makes the planner compute with torch.

        `patience` is a factor on all ages that the node allows, for machines that have other work.
        """
        self.setup, self.folder, self.patience, self.busy = setup, folder, patience, busy
        ages = [f"{name}={patience * age}" for name, age in AGES.items()] if patience > 1 else []
        self.settings = (*WIDE, *ages, *setup.settings, *settings)
        self.file = folder / "record.jsonl"
        self.port = _free_port()
        self.address = "127.0.0.1", self.port
        self.processes: dict[str, Process] = {}
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
        setup = self.setup
        for i, command in enumerate(setup.before):
            self.start(f"before{i}", command)
            self.ready(f"before{i}")
        given = {"arm": setup.arm, "recorder": setup.recorder, "camera": setup.camera}
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
        filled = [sys.executable, *(part.replace("{file}", str(self.file)) for part in command)]
        self.processes[name] = Process(filled, self.setup.environment)

    def ready(self, name: str) -> None:
        """Wait until a process says that it is ready."""
        self.processes[name].until(lambda line: line.startswith("ready"))

    def node_command(self, port: int) -> list[str]:
        """Return the command line of a node for this arm."""
        script = [str(HERE / "node.py"), self.setup.backend, "front", str(port), "{file}"]
        return [*script, *self.settings]

    def start_planner(self) -> None:
        """Start a planner, in place of the one that is there."""
        busy = ["busy"] if self.busy else []
        self.start("planner", [str(HERE / "planner.py"), str(self.port), str(SPEED), *busy])

    def process(self, name: str) -> Process:
        """Return a process; the node's if that one is part of it."""
        return self.processes[name if name in self.processes else "node"]

    def write(self, name: str, line: str) -> float:
        """Write a fault, `fine` or `go` to the arm or the planner; return when."""
        now = time.monotonic()
        self.process(name).write(line)
        return now

    def go(self, *, tries: int = 60) -> None:
        """Do what a person does after a stop: wait until it rests, reset, arm; then it moves."""
        planner = self.processes["planner"]
        answers = '"event": "armed"', '"event": "refused"'
        for _ in range(tries):
            self.begun = self.write("planner", "go")
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
        """Return the health of the arm, as the node reports it."""
        return self.ask("health")["health"]

    def ask(self, kind: str, **values: Any) -> dict[str, Any]:
        """Return the node's reply to a client."""
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
        else:  # the arm's driver failed: the last command that moves it
            sent = commands.rows[1:, 0][np.abs(commands.speeds).max(1) > STILL]
            rest = sent.max()
        stopped = health["state"] in ("fault", "hold")
        late = commands.rows[1:, 0] > rest + 0.05
        held = stopped and not (np.abs(commands.speeds[late]) > STILL).any()
        return Row(
            self.setup.backend,
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
        """Return the outcome of a signal that ends the node, in motion."""
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
            self.setup.backend,
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

        own = [setting for setting in self.settings if setting.startswith("safety.")]
        settings = config.load({"safety": SafetyFilter.Config}, overrides=own)["safety"]
        limits = SafetyFilter(description.load("panda"), settings).limits
        return np.array([limits.velocity, limits.acceleration])


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
