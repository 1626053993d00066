"""The clients of a node: `RemoteRobot` for a planner, `Watcher` for reading alone."""

from __future__ import annotations

import contextlib
import math
import select
import socket
import threading
import time
from types import TracebackType
from typing import Any, Self

import numpy as np

from latentplan.errors import RobotError, ShapeError, check_range
from latentplan.real_robot.link.messages import Channel, Message, one_line
from latentplan.real_robot.link.server import DATAGRAM, STOP, STOPPED
from latentplan.real_robot.robot import Health, RobotSpec
from latentplan.types import Array, Observation

TRIES = 5  # datagrams of an emergency stop


class Connection:
    """A connection to a node: its spec, its observations and its health.

    Threads may share it: calls wait for each other; `health` does not wait for an `observe`.
    """

    def __init__(self, address: tuple[str, int], *, patience: float = 5.0) -> None:
        """Take the node's address; each answer must come within `patience` s."""
        check_range("robot.patience", patience, 1e-3, 3600)
        self._lock = threading.RLock()
        self.address, self.patience = address, patience
        self._channel: Channel | None = None
        self._spec: RobotSpec | None = None
        self._health: Health | None = None
        self._newest = Message("observation", {"number": 0})
        self._seen = 0  # number of the last returned observation
        self._asked = 0
        self._pending: int | None = None  # number of the request that waits for its reply
        self._refusal = ""  # the reason that it was refused; empty if it was not
        self._goal: Observation | str | None = None

    @property
    def spec(self) -> RobotSpec:
        """Return names, units, limits and rates; RobotError before it is connected."""
        if self._spec is None:
            raise RobotError("robot: not connected; use it in a with block")
        return self._spec

    @property
    def goal(self) -> Observation | str | None:
        """Return the node's newest goal: images by camera, or a text; None without one."""
        return self._goal

    def observe(self) -> Observation:
        """Return the newest observation; wait for one if the last call returned it."""
        with self._lock:
            self._hear(time.monotonic())
            self._wait_for(self._seen + 1)
            self._seen = self._number
            arrays = self._newest.arrays
            return {name: array for name, array in arrays.items() if name != "sent"}

    def health(self) -> Health:
        """Return the health of the arm."""
        if not self._lock.acquire(blocking=False):  # another thread waits for an observation
            return ask(self.address, "health", patience=self.patience)
        try:
            self._ask("health")
            return self._known_health()
        finally:
            self._lock.release()

    def _connect(self, *requests: str) -> None:
        """Connect and make requests; if one is refused, disconnect and raise RobotError."""
        host, port = self.address
        try:
            connection = socket.create_connection(self.address, timeout=self.patience)
        except OSError as e:
            raise RobotError(
                f"node {host}:{port}: does not answer ({e.strerror or e}); start it first"
            ) from None
        self._channel = Channel(connection)
        try:
            for request in requests:
                self._ask(request)
        except BaseException:
            self._hang_up()
            raise

    def _known_health(self) -> Health:
        if self._health is None:
            raise RobotError("node: it has not told the arm's health; is it of another version?")
        return self._health

    def _hang_up(self) -> None:
        if self._channel is not None:
            self._channel.close()

    @property
    def _number(self) -> int:
        return int(self._newest.values["number"])

    def _wait_for(self, number: int) -> None:
        """Wait for that observation, or a later one."""
        end = time.monotonic() + self.patience
        while self._number < number:
            if not self._hear(end):
                raise RobotError(self._silence())

    def _ask(self, kind: str, **values: Any) -> None:
        """Send a request and wait for its reply; RobotError if it is refused."""
        self._asked += 1
        self._pending, self._refusal = self._asked, ""
        self._tell(Message(kind, {"id": self._asked, **values}))
        end = time.monotonic() + self.patience
        while self._pending is not None:
            if not self._hear(end):
                raise RobotError(self._silence())
        if self._refusal:
            raise RobotError(self._refusal)

    def _tell(self, message: Message) -> None:
        if self._channel is None:
            raise RobotError("robot: not connected; use it in a with block")
        self._channel.tell(message)

    def _hear(self, end: float) -> bool:
        """Handle the node's messages; wait until `end` s at most. Return whether any came."""
        channel = self._channel
        if channel is None:
            raise RobotError("robot: not connected; use it in a with block")
        channel.flush()
        left = max(0.0, end - time.monotonic())
        if not select.select([channel.socket], [], [], left)[0]:
            return False
        for message in channel.heard():
            self._take(message)
        return True

    def _silence(self) -> str:
        host, port = self.address
        return f"node {host}:{port}: no answer within {self.patience} s; check that it still runs"

    def _take(self, message: Message) -> None:
        """Keep what a message says; RobotError if the node speaks another language."""
        try:
            self._keep(message)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as e:
            found = one_line(f"{message.kind}: {type(e).__name__}: {e}")
            raise RobotError(f"node: found a {found}; start a node of this version") from None

    def _keep(self, message: Message) -> None:
        values = message.values
        if message.kind == "spec":
            self._spec = RobotSpec.from_json(values)
            return
        if message.kind == "goal":
            self._goal = values["text"] or message.arrays
            return
        known = values["health"]
        ages = {k: math.inf if v is None else float(v) for k, v in known["ages"].items()}
        self._health = Health(**(known | {"ages": ages}))
        if message.kind == "observation":
            self._newest = Message("observation", {"number": int(values["number"])}, message.arrays)
        elif message.kind == "reply" and values["to"] == self._pending:
            self._pending, self._refusal = None, str(values["error"])


class RemoteRobot(Connection):
    """A `Robot` that a node controls; the node's clock goes on while a planner computes.

    `observe` waits for a new observation; `send` returns at the next observation, so a loop of both
    runs once a period. Threads may share it: calls wait for each other, but `stop` and `health` of
    another thread reach the node at once, by a connection of their own.
    """

    def __init__(
        self, address: tuple[str, int], *, patience: float = 5.0, forgive: bool = False
    ) -> None:
        """Take the node's address; each answer must come within `patience` s.

        With `forgive`, an arm that was stopped is reset first; a person must have checked it.
        """
        super().__init__(address, patience=patience)
        self.forgive = forgive
        self._sequence = 0

    def __enter__(self) -> Self:
        """Connect to the node and arm."""
        self._connect("plan")
        try:
            self._until_not("disconnected")
            if self.forgive and self.health().state in ("hold", "fault"):
                self._ask("reset")
            self._ask("arm")
        except BaseException:
            self._hang_up()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the arm, wait until it rests, and disconnect; the node goes on."""
        try:
            self.stop("the planner has left")
        except RobotError:
            if not isinstance(error, RobotError):  # else that says what went wrong first
                raise
        finally:
            self._hang_up()  # which stops an arm that moves

    def send(self, action: Array) -> Array:
        """Return the action that was sent in the period until the next observation."""
        with self._lock:
            self._hear(time.monotonic())
            self._refuse_unless_armed()
            self._sequence += 1
            values = {"sequence": self._sequence, "observation": self._seen}
            self._tell(Message("command", values, {"action": self._numbers(action)}))
            self._wait_for(self._number + 1)
            self._refuse_unless_armed()
            return _sent(self._newest)

    def stop(self, reason: str) -> None:
        """Bring the arm to rest; call `reset` before the next `send`."""
        if not self._lock.acquire(blocking=False):  # another thread waits for an observation
            ask(self.address, "stop", reason=reason, patience=self.patience)
            self._until_not("stopping")
            return
        try:
            self._ask("stop", reason=reason)
            self._until_not("stopping")
        finally:
            self._lock.release()

    def reset(self) -> None:
        """Clear the reason of the stop and arm at the measured joints; RobotError if refused."""
        with self._lock:
            self._until_not("stopping")
            self._ask("reset")
            self._ask("arm")

    def preview(self, path: Array) -> None:
        """Send the planned path (H, 3), m in the world, for display; nothing moves by it."""
        with self._lock:
            self._tell(Message("preview", {}, {"path": np.asarray(path, np.float64)}))

    def _numbers(self, action: Array) -> Array:
        try:
            return np.asarray(action, np.float64)
        except (TypeError, ValueError):
            self.stop("the action is no array of numbers")
            size = self.spec.data.action.size
            raise ShapeError(f"action: found {one_line(action)}, need {size} numbers") from None

    def _refuse_unless_armed(self) -> None:
        health = self._health
        if health is not None and health.state != "armed":
            self._until_not("stopping")
            raise RobotError(f"robot {self.spec.name}: {self.health().state}; {health.reason}")

    def _until_not(self, state: str) -> None:
        """Poll until the arm has left that state."""
        end = time.monotonic() + self.patience
        while self.health().state == state and time.monotonic() < end:
            time.sleep(0.01)


class Watcher(Connection):
    """A read-only client: the planner's observations, and the actions that are really sent."""

    def __enter__(self) -> Self:
        """Connect to the node."""
        self._connect("watch")
        return self

    def __exit__(self, *_: object) -> None:
        """Disconnect."""
        self._hang_up()

    @property
    def sent(self) -> Array:
        """Return the action (A,) that was sent in the period before the last observation."""
        return _sent(self._newest)

    @property
    def number(self) -> int:
        """Return the last observation's number; a gap means that this watcher was too slow."""
        return self._number

    @property
    def state(self) -> str:
        """Return the arm's state at the last observation: armed, hold, ..."""
        return "" if self._health is None else self._health.state


def emergency_stop(address: tuple[str, int], *, reason: str = "emergency stop") -> None:
    """Stop the arm of a node, whatever its clients do; it stays stopped until `reset`.

    By UDP, which the node reads before all else, and by TCP if that is not answered, as through a
    tunnel. Software alone: it is no substitute for the arm's own emergency stop. RobotError if no
    node answers within some seconds.
    """
    data = (STOP + reason.encode(errors="replace"))[:DATAGRAM]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as alarm, contextlib.suppress(OSError):
        alarm.connect(address)
        alarm.settimeout(0.1)
        for _ in range(TRIES):  # a datagram may be lost
            with contextlib.suppress(TimeoutError):
                alarm.send(data)
                if alarm.recv(DATAGRAM) == STOPPED:
                    return
    try:
        ask(address, "fault", reason=reason)
    except RobotError as e:
        raise RobotError(f"{e}; use the arm's own emergency stop") from None


def ask(
    address: tuple[str, int],
    kind: str,
    *,
    reason: str = "",
    patience: float = 1.0,
) -> Health:
    """Send a node the request `fault`, `stop`, `reset` or `health`; return the arm's health.

    RobotError if the request is refused, or no node answers within `patience` s.
    """
    client = Connection(address, patience=patience)
    client._connect()
    try:
        client._ask(kind, reason=reason)
    finally:
        client._hang_up()
    return client._known_health()


def _sent(observation: Message) -> Array:
    """Return the action (A,) that was sent in the period before an observation."""
    if "sent" not in observation.arrays:
        raise RobotError("node: found an observation without the action that was sent")
    return observation.arrays["sent"].astype(np.float32)
