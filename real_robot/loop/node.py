"""The control loop of an arm, in a process of its own: numpy alone, never blocked by a planner.

At every tick it reads sensors and the planner's messages, and sends the setpoint that the
supervisor allows. A planner may be slow, hang, die and return: the arm stops, the node does not.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from latentplan.errors import RobotError, check_range
from latentplan.real_robot.link.messages import Channel, Message, one_line
from latentplan.real_robot.link.server import PATIENCE, Server
from latentplan.real_robot.loop.guard import stopping_first
from latentplan.real_robot.loop.local import describe
from latentplan.real_robot.loop.realtime import next_tick, real_time
from latentplan.real_robot.loop.supervisor import State, Supervisor
from latentplan.real_robot.robot import Command, Driver
from latentplan.types import Array, Observation

REMEMBERED = 256  # observations that a command may still answer
WATCHERS = 6  # clients that get observations besides the planner
MESSAGES = 8  # of a client that are handled in a tick
SHARE = 0.25  # of a tick, for clients; the rest is the arm's
REQUESTS = ("plan", "watch", "arm", "reset", "stop", "fault", "health")
INTERVALS = 3000  # ticks whose times are kept: a minute


class Node:
    """A control loop that serves one planner at a time, over a socket on this machine.

    Observations go out every `period` s with a number; a command names the observation that it
    answers, so the node computes its age from its own clock alone. A planner that disconnects
    during motion is a fault. A second planner is refused. Any other client may watch, request the
    arm's health, stop it, cause a fault (`emergency_stop`) and reset it, whatever the planner does.
    A client that sends nonsense, or does not read, is disconnected; clients together get a quarter
    of a tick, and the emergency stop has a socket of its own. Whatever else ends the loop, the arm
    is stopped first.
    """

    def __init__(
        self,
        driver: Driver,
        supervisor: Supervisor,
        *,
        address: tuple[str, int] = ("127.0.0.1", 0),
        period: float = 0.1,
    ) -> None:
        """Listen at `address`; with port 0, at a free port. RobotError if it is in use.

        An action holds for `period` s.
        """
        check_range("Node.period", period, 1e-3, 10)
        self.driver, self.supervisor, self.period = driver, supervisor, period
        self.dt = supervisor.safety.config.dt
        self.intervals: deque[float] = deque(maxlen=INTERVALS)  # s between ticks
        self._every = max(1, round(period / self.dt))  # ticks between observations
        self._server = Server(address)
        self.address = self._server.address
        self.preview: Array | None = None  # (H, 3) m, the planned path of the end effector
        self._planner: Channel | None = None
        self._watchers: list[Channel] = []  # other clients that get observations, too
        self._command: Command | None = None
        self._stamps: dict[int, float] = {}  # of the observations sent, by number
        self._number = 0
        self._before = supervisor.safety.q  # the reference when the last observation went out
        self._leaving = False
        self._alarms: deque[str] = deque(maxlen=1)  # reasons of emergency stops by other threads
        self._goal: bytes = b""  # the message of the newest goal
        self._goal_sent: bytes = b""  # the one that the connected planner has

    def run(self, ready: Callable[[], None] | None = None) -> None:
        """Run the loop until `leave`, SIGTERM or SIGINT; then stop the arm and disconnect.

        `ready` is called once the driver is connected. Ticks have real-time priority if the
        system allows it.
        """
        with self._signals(), real_time():
            self.driver.open()
            try:
                if ready is not None:
                    ready()
                with stopping_first(self.driver, self.supervisor):
                    self._loop()
            finally:
                self._server.leave()
                self.driver.close()

    def leave(self) -> None:
        """Make `run` stop the arm and return; safe from another thread."""
        self._leaving = True

    def set_goal(self, goal: Observation | str) -> None:
        """Send the goal to this planner and to later ones; safe from another thread.

        `goal` is a mapping of images (h, w, 3) uint8 by camera, or a text. RobotError if it is
        larger than a message.
        """
        text = goal if isinstance(goal, str) else ""
        arrays = {} if isinstance(goal, str) else goal
        self._goal = Message("goal", {"text": text}, arrays).encode()

    def emergency_stop(self, reason: str = "emergency stop") -> None:
        """Stop the arm at the next tick; it stays stopped until `reset`; safe from any thread."""
        self._alarms.append(reason)

    def _loop(self) -> None:
        due = last = self.driver.now()
        while self.supervisor.moving or not self._leaving:
            now = self.driver.now()
            self.intervals.append(now - last)
            last = now
            self._tick()
            due = next_tick(due, now=now, dt=self.dt)
            self.driver.wait(due)

    def _tick(self) -> None:
        supervisor = self.supervisor
        alarm = self._server.emergency()
        if self._alarms:
            alarm = self._alarms.popleft()
        if alarm:
            supervisor.fault(alarm)
        self._serve(self.driver.now())
        self._tell_goal()
        if self._leaving:
            supervisor.stop("the node is leaving")
        supervisor.listen(self.driver)
        now = self.driver.now()
        supervisor.steer(self.driver, self._command, now=now)
        if supervisor.ticks % self._every == 0:
            self._publish(now)

    @property
    def _observers(self) -> list[Channel]:
        """Return the clients that get observations: the watchers and the planner."""
        return [*self._watchers, *([] if self._planner is None else [self._planner])]

    def _serve(self, now: float) -> None:
        """Accept connections and handle messages, the planner's first, for a share of the tick."""
        self._server.accept(keep=self._observers)
        for channel in self._server.turns(first=self._planner, seconds=SHARE * self.dt):
            try:
                for message in channel.heard(MESSAGES):
                    self._obey(message, channel, now=now)
                channel.flush()
                if channel is not self._planner:  # which may be slow, or paused in a debugger
                    channel.refuse_delay(PATIENCE, silence=channel not in self._watchers)
            except RobotError as e:
                self._lose(channel, str(e))

    def _lose(self, channel: Channel, why: str) -> None:
        """Close a connection; if it was the planner's, stop the arm if it moves."""
        self._server.close(channel)
        self._watchers = [watcher for watcher in self._watchers if watcher is not channel]
        if channel is not self._planner:
            return
        self._planner = self._command = None
        if self.supervisor.state is State.ARMED:
            self.supervisor.fault(f"planner: {why}")

    def _obey(self, message: Message, channel: Channel, *, now: float) -> None:
        values = message.values
        if message.kind == "command":
            self._take(message, channel)
            return
        if message.kind == "preview" and channel is self._planner:
            self._show(message)
            return
        error = ""
        try:
            self._ask(message.kind, values, channel=channel, now=now)
        except RobotError as e:
            error = str(e)
        number = values.get("id")
        to = number if type(number) in (int, str) else None
        reply = self._health(now) | {"to": to, "error": error}
        channel.tell(Message("reply", reply))

    def _take(self, message: Message, channel: Channel) -> None:
        """Use the planner's command for the next ticks."""
        if channel is not self._planner:
            raise RobotError("connection: a command from a client that is not the planner")
        known = self._command
        answers, sequence = message.values.get("observation"), message.values.get("sequence")
        if type(answers) is not int or type(sequence) is not int:
            self.supervisor.fault("planner: a command without its observation or sequence number")
        elif answers not in self._stamps or (known is not None and sequence < known.sequence):
            self.supervisor.safety.interventions["late"] += 1  # it never replaces a newer one
        elif known is None or sequence > known.sequence:
            action = message.arrays.get("action", np.empty(0))
            self._command = Command(action, sequence, self._stamps[answers])

    def _show(self, message: Message) -> None:
        """Keep the planned path for display; no check uses it."""
        path = message.arrays.get("path", np.empty(0))
        if path.ndim != 2 or path.shape[1] != 3 or not np.isfinite(path).all():
            raise RobotError(f"preview: found shape {path.shape}, need finite (H, 3)")
        self.preview = path

    def _ask(self, kind: str, values: Any, *, channel: Channel, now: float) -> None:
        """Carry out a request; RobotError if it is refused."""
        supervisor = self.supervisor
        reason = one_line(values.get("reason", "")) or "asked from outside"
        if kind == "plan":
            self._welcome(channel)
        elif kind == "watch":
            self._admit(channel)
        elif kind == "arm":
            if channel is not self._planner:
                raise RobotError(
                    "node.arm: found another client than the planner, whose commands the arm would "
                    "obey; request plan first"
                )
            supervisor.arm(now=now)
            self._command, self._before = None, supervisor.safety.q
        elif kind == "reset":
            supervisor.reset(now=now)
        elif kind == "stop":
            supervisor.stop(reason)
        elif kind == "fault":
            supervisor.fault(reason)
        elif kind != "health":
            raise RobotError(f"node: {one_line(kind)!r} is none of {', '.join(REQUESTS)}")

    def _welcome(self, channel: Channel) -> None:
        """Make a client the planner; RobotError if there is one."""
        if self._planner is not None:
            raise RobotError("node: another planner drives this arm")
        self._watchers = [watcher for watcher in self._watchers if watcher is not channel]
        self._planner, self._command, self._stamps = channel, None, {}
        self._goal_sent = b""
        channel.tell(self._description())

    def _admit(self, channel: Channel) -> None:
        """Make a client a watcher; RobotError if there are too many."""
        if channel is self._planner or channel in self._watchers:
            raise RobotError("node.watch: this client gets the observations already")
        if len(self._watchers) >= WATCHERS:
            raise RobotError(f"node.watch: {WATCHERS} clients watch already; end one of them")
        self._watchers.append(channel)
        channel.tell(self._description())

    def _description(self) -> Message:
        shapes = {name: p.pixels.shape for name, p in self.driver.images().items()}
        spec = describe(self.supervisor.safety, images=shapes, period=self.period)
        return Message("spec", spec.to_json())

    def _publish(self, now: float) -> None:
        """Send the observation to each client that has read the one before."""
        reading = self.supervisor.reading
        safety = self.supervisor.safety
        sent = safety.sent(self._before, period=self._every * self.dt)
        self._before = safety.q
        clients = [channel for channel in self._observers if channel.idle]
        if reading is None or not clients:
            return
        self._number += 1
        self._stamps[self._number] = now
        self._stamps.pop(self._number - REMEMBERED, None)
        arrays = {
            "q": reading.q.astype(np.float32),
            "dq": reading.dq.astype(np.float32),
            "gripper": np.array([reading.gripper], np.float32),
            "sent": sent,
        } | {name: p.pixels for name, p in self.driver.images().items()}
        values = self._health(now) | {"number": self._number}
        data = Message("observation", values, arrays).encode()
        for channel in clients:
            try:
                channel.send(data)
            except RobotError as e:
                self._lose(channel, str(e))

    def _tell_goal(self) -> None:
        """Send the newest goal to the planner, once."""
        goal, planner = self._goal, self._planner
        if planner is None or goal is self._goal_sent:
            return
        self._goal_sent = goal
        if not goal:
            return
        try:
            planner.send(goal)
        except RobotError as e:
            self._lose(planner, str(e))

    def _health(self, now: float) -> dict[str, Any]:
        health = asdict(self.supervisor.health(now=now))
        health["ages"] = {k: v if np.isfinite(v) else None for k, v in health["ages"].items()}
        return {"health": health}

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Leave at SIGTERM and SIGINT, if this is the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        names = (signal.SIGTERM, signal.SIGINT)
        before = [signal.signal(name, lambda *_: self.leave()) for name in names]
        try:
            yield
        finally:
            for name, handler in zip(names, before, strict=True):
                signal.signal(name, handler)
