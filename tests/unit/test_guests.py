"""Clients of a node that send nonsense, floods or nothing: the arm is driven on, or stopped."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scripted import PANDA, ScriptedNode, rests

from latentplan.errors import RobotError
from latentplan.real_robot.backends.sim import SimulatedDriver
from latentplan.real_robot.link import server
from latentplan.real_robot.link.messages import LENGTHS, Message
from latentplan.real_robot.loop import node as nodes
from latentplan.real_robot.loop.local import LocalRobot
from latentplan.real_robot.loop.safety import SafetyFilter
from latentplan.real_robot.loop.supervisor import State, Supervisor

TURN = np.array([0.4, 0, 0, 0, 0, 0, 0, 1.0])
HEALTH = Message("health", {"id": 1}).encode()


def raw(head: Any) -> bytes:
    text = json.dumps(head).encode()
    return LENGTHS.pack(len(text), 0) + text


NONSENSE = [
    raw({"kind": "health", "values": {}, "arrays": {"a": ["uint8", [2**64]]}}),
    raw({"kind": "health", "values": [], "arrays": {}}),
    raw([[[[]]]]),
    b"GET / HTTP/1.1\r\n\r\n",
    b"\xff" * 60,
    Message("command", {"observation": 1, "sequence": 9}, {"action": TURN}).encode(),
]


def gone(connection: socket.socket) -> bool:
    """Return whether the node has hung up."""
    with contextlib.suppress(BlockingIOError):
        try:
            while connection.recv(1 << 16):
                pass
        except ConnectionError:
            return True
        return True
    return False


@pytest.mark.parametrize("data", NONSENSE)
def test_nonsense_ends_that_guest_alone(data: bytes) -> None:
    bench = ScriptedNode()

    def script() -> Iterator[None]:
        yield from bench.until_armed()
        other = bench.connect()
        guest = bench.raw()
        guest.sendall(data)
        yield
        yield
        assert gone(guest)
        other.tell(Message("health", {"id": 7}))
        yield
        (reply,) = other.heard()
        assert reply.values["to"] == 7 and reply.values["health"]["state"] == "armed"
        for _ in range(10):
            yield
            assert bench.armed and bench.speed > 0.39
        other.close()

    bench.play(script)
    assert bench.supervisor.state is State.HOLD


def test_a_planner_that_sends_nonsense_stops_the_arm() -> None:
    bench = ScriptedNode()

    def script() -> Iterator[None]:
        yield from bench.until_armed()
        bench.planning = False
        bench.planner.send(NONSENSE[0])
        yield
        yield
        assert bench.supervisor.state is State.STOPPING
        assert "planner: connection: not a message" in bench.supervisor.reason
        for _ in range(40):
            yield

    bench.play(script)
    assert rests(bench.written, limits=bench.supervisor.safety.limits)


def test_a_flood_gets_its_share_and_the_emergency_stop_comes_first() -> None:
    bench = ScriptedNode()
    taken = [0]
    ask = bench.node._ask

    def count(kind: str, *arguments: Any, **named: Any) -> None:
        taken[-1] += kind == "health"
        ask(kind, *arguments, **named)

    bench.node._ask = count  # type: ignore[method-assign]

    def script() -> Iterator[None]:
        yield from bench.until_armed()
        floods = [bench.raw() for _ in range(6)]
        for _ in range(40):
            taken.append(0)
            for flood in floods:
                with contextlib.suppress(BlockingIOError, ConnectionError):
                    flood.send(HEALTH * 20_000)
            yield
            assert bench.armed and bench.speed > 0.39
        assert 0 < max(taken) <= 6 * nodes.MESSAGES
        held = sum(len(c._in) + len(c._out) for c in bench.node._server.channels)
        assert held < 7 * (server.BODY + server.WAITING + (1 << 17))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as alarm:
            alarm.settimeout(1.0)
            alarm.sendto(server.STOP + b"a person\n", bench.node.address)
            yield
            assert bench.supervisor.state is State.STOPPING
            assert bench.supervisor.reason == "a person"
            assert alarm.recv(100) == server.STOPPED
        for flood in floods:
            flood.close()

    bench.play(script)
    assert rests(bench.written, limits=bench.supervisor.safety.limits)
    assert bench.supervisor.state is State.FAULT


def test_a_guest_that_never_reads_is_hung_up_on() -> None:
    bench = ScriptedNode()

    def script() -> Iterator[None]:
        yield from bench.until_armed()
        guest = bench.raw()
        yield
        bench.node._server.channels[-1].socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        for _ in range(400):
            guest.sendall(HEALTH * nodes.MESSAGES)
            yield
            if len(bench.node._server.channels) == 1:
                break
        assert len(bench.node._server.channels) == 1 and bench.armed
        guest.close()

    bench.play(script)


def test_guests_that_say_nothing_or_a_byte_at_a_time_are_hung_up_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nodes, "PATIENCE", 0.2)
    bench = ScriptedNode()

    def script() -> Iterator[None]:
        yield from bench.until_armed()
        mute, slow = bench.raw(), bench.raw()
        watcher = bench.connect("watch")
        for i in range(10_000):
            with contextlib.suppress(ConnectionError):
                slow.send(HEALTH[i % len(HEALTH) : i % len(HEALTH) + 1] if i < 20 else b"")
            list(watcher.heard())
            yield
            if len(bench.node._server.channels) == 2:
                break
        assert gone(mute) and gone(slow) and bench.armed
        for connection in (mute, slow, watcher):
            connection.close()

    bench.play(script)


def test_hundreds_of_connections_do_not_keep_others_out() -> None:
    bench = ScriptedNode()

    def script() -> Iterator[None]:
        yield from bench.until_armed()
        watcher = bench.connect("watch")
        yield
        many: list[socket.socket] = []
        for _ in range(40):
            many += [bench.raw() for _ in range(8)]
            yield
            assert len(bench.node._server.channels) <= server.CLIENTS + 2
        seen = [message for message in watcher.heard() if message.kind == "observation"]
        assert len(seen) > 5 and bench.armed and bench.speed > 0.39
        stop = bench.connect("fault")
        yield
        yield
        assert bench.supervisor.state is State.STOPPING
        for connection in (*many, watcher, stop):
            connection.close()

    bench.play(script)


def test_a_flood_at_the_emergency_stop_is_one() -> None:
    bench = ScriptedNode()

    def script() -> Iterator[None]:
        yield from bench.until_armed()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as junk:
            junk.sendto(b"latentplan go", bench.node.address)
            yield
            assert bench.armed
            for _ in range(server.FLOOD + 1):
                junk.sendto(b"x" * 600, bench.node.address)
            yield
        assert bench.supervisor.state is State.STOPPING
        assert "emergency stop: more than 32 datagrams" in bench.supervisor.reason

    bench.play(script)


def test_what_a_guest_may_not_ask_is_said_in_words() -> None:
    bench = ScriptedNode()
    said: dict[str, str] = {}

    def script() -> Iterator[None]:
        yield
        watchers = [bench.connect("watch") for _ in range(nodes.WATCHERS)]
        for _ in range(5):
            yield
        guest = bench.connect("arm", "dance\n" * 100, "watch", "plan")
        watchers[0].tell(Message("watch", {"id": "again"}))
        bench.planner.tell(Message("watch", {"id": "planner"}))
        for _ in range(5):
            yield
        for channel in (watchers[0], guest):
            for message in channel.heard():
                if message.kind == "reply":
                    said[str(message.values["to"])[:5]] = message.values["error"]
        for channel in (guest, *watchers):
            channel.close()

    bench.play(script)
    assert said["arm"].startswith("node.arm: found another client than the planner")
    assert "is none of plan, watch, arm" in said["dance"] and "\n" not in said["dance"]
    assert said["watch"] == "node.watch: 6 clients watch already; end one of them"
    assert said["plan"] == "node: another planner drives this arm"
    assert said["again"].endswith("gets the observations already")


def test_replayed_commands_move_nothing() -> None:
    """The bytes of an old command, by its planner or by a guest."""
    bench = ScriptedNode()

    def script() -> Iterator[None]:
        yield from bench.until_armed()
        old = Message("command", {"sequence": 1, "observation": 1}, {"action": -TURN}).encode()
        guest = bench.raw()
        guest.send(old)
        for _ in range(10):
            bench.planner.send(old)
            yield
            assert bench.armed and bench.speed > 0.39
        assert gone(guest)
        assert bench.supervisor.safety.interventions["late"] >= 5
        bench.planning = False
        ticks = 0
        while bench.armed:
            bench.planner.send(old)
            ticks += 1
            yield
        assert ticks <= 17 and "s old, 0.3 s is allowed" in bench.supervisor.reason
        guest.close()

    bench.play(script)
    assert rests(bench.written, limits=bench.supervisor.safety.limits)


class Broken(SimulatedDriver):
    """A driver with a bug, from some time on."""

    def __init__(self, part: str, error: BaseException) -> None:
        super().__init__(PANDA)
        self.part, self.error = part, error
        self.broken = False
        self.written: list[Any] = []

    def reading(self) -> Any:
        self._fail("reading")
        return super().reading()

    def write(self, setpoint: Any) -> None:
        self._fail("write")
        self.written.append(setpoint)
        super().write(setpoint)

    def wait(self, until: float) -> None:
        super().wait(until)
        self._fail("wait")

    def _fail(self, part: str) -> None:
        if self.broken and part == self.part:
            self.broken = part == "reading"  # for ever
            raise self.error


@pytest.mark.parametrize("part", ["reading", "write", "wait"])
@pytest.mark.parametrize("error", [TypeError("a bug"), MemoryError(), KeyboardInterrupt()])
def test_whatever_escapes_a_loop_the_arm_rests_first(part: str, error: BaseException) -> None:
    driver = Broken(part, error)
    robot = LocalRobot(driver, Supervisor(SafetyFilter(PANDA)))
    with pytest.raises(type(error)), robot:
        for _ in range(5):
            robot.send(TURN)
        driver.broken = True
        try:
            robot.send(TURN)
        finally:
            assert np.abs(driver.written[-1].dq).max() < 1e-6
            state = State.HOLD if isinstance(error, KeyboardInterrupt) else State.FAULT
            assert robot.supervisor.state is state
    assert rests(driver.written, limits=robot.supervisor.safety.limits)


def test_a_bug_in_the_node_stops_the_arm_before_it_is_raised() -> None:
    bench = ScriptedNode()

    def script() -> Iterator[None]:
        yield from bench.until_armed()
        bench.node._publish = None  # type: ignore[method-assign, assignment]
        for _ in range(200):
            yield

    with pytest.raises(TypeError):
        bench.play(script)
    assert bench.supervisor.state is State.FAULT and "TypeError" in bench.supervisor.reason
    assert rests(bench.written, limits=bench.supervisor.safety.limits)


def test_a_driver_that_no_longer_takes_setpoints_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Broken("write", TypeError("a bug"))
    robot = LocalRobot(driver, Supervisor(SafetyFilter(PANDA)))
    with pytest.raises((RobotError, TypeError)), robot:
        robot.send(TURN)

        def never(setpoint: Any) -> None:
            raise TypeError("a bug")

        monkeypatch.setattr(driver, "write", never)
        robot.send(TURN)
    assert robot.supervisor.state is State.FAULT
