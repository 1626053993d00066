"""A node on a simulated clock whose surroundings follow a script, a step a tick."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from latentplan.errors import RobotError
from latentplan.real_robot.backends.sim import SimulatedDriver
from latentplan.real_robot.link.messages import Channel, Message
from latentplan.real_robot.loop.node import Node
from latentplan.real_robot.loop.safety import SafetyFilter
from latentplan.real_robot.loop.supervisor import State, Supervisor
from latentplan.real_robot.robot import Setpoint
from latentplan.robots.description import load

PANDA = load("panda")
TURN = np.array([0.4, 0, 0, 0, 0, 0, 0, 1.0])


class ScriptedNode:
    """A node with a planner that turns the first joint; `play` runs a script beside them.

    The script yields once a tick; when it ends, the node leaves. The clock is the simulation's, so
    a tick is a tick on any machine.
    """

    def __init__(self) -> None:
        self.driver = SimulatedDriver(PANDA)
        self.supervisor = Supervisor(SafetyFilter(PANDA))
        self.node = Node(self.driver, self.supervisor)
        self.written: list[Setpoint] = []
        self.planning = True
        self.planner = self.connect("plan")
        self.sequence = 0
        self._opened: list[Channel] = [self.planner]

    def connect(self, *kinds: str) -> Channel:
        """Connect a client that makes requests."""
        channel = Channel(socket.create_connection(self.node.address, timeout=5))
        for kind in kinds:
            channel.tell(Message(kind, {"id": kind}))
        return channel

    def raw(self) -> socket.socket:
        """Connect a socket that never blocks."""
        connection = socket.create_connection(self.node.address, timeout=5)
        connection.setblocking(False)
        return connection

    def play(self, script: Callable[[], Iterator[None]]) -> None:
        """Run the node with this script until it ends."""
        steps, write, wait = script(), self.driver.write, self.driver.wait

        def write_down(setpoint: Setpoint) -> None:
            self.written.append(setpoint)
            write(setpoint)

        def wait_and_step(until: float) -> None:
            wait(until)
            self._plan()
            if next(steps, "the end") == "the end":
                self.node.leave()

        self.driver.write, self.driver.wait = write_down, wait_and_step  # type: ignore[method-assign]
        try:
            self.node.run()
        finally:
            for channel in self._opened:
                channel.close()

    def until_armed(self) -> Iterator[None]:
        """Take ticks until the arm moves at the speed that is asked for."""
        yield
        self.planner.tell(Message("arm", {"id": 1}))
        for _ in range(100):
            yield
            if self.speed > 0.39:
                return
        raise AssertionError(f"it does not move: {self.supervisor.health(now=0)}")

    @property
    def speed(self) -> float:
        """The first joint's, rad/s."""
        return abs(float(self.supervisor.safety._reference.dq[0]))

    @property
    def armed(self) -> bool:
        return self.supervisor.state is State.ARMED

    def _plan(self) -> None:
        """Answer the newest observation."""
        seen: list[Message] = []
        with contextlib.suppress(RobotError):  # the node may have hung up
            seen += [m for m in self.planner.heard() if m.kind == "observation"]
        if not seen or not self.planning:
            return
        self.sequence += 1
        values = {"sequence": self.sequence, "observation": seen[-1].values["number"]}
        self.planner.tell(Message("command", values, {"action": TURN}))


def rests(written: list[Any], *, limits: Any, dt: float = 0.02) -> bool:
    """Return whether setpoints end at rest, and slow down within the limits."""
    speeds = np.array([setpoint.dq for setpoint in written])
    steps = np.abs(np.diff(speeds, axis=0)) / dt
    return bool(np.abs(speeds[-1]).max() < 1e-6 and (steps <= 1.001 * limits.acceleration).all())
