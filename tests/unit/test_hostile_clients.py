"""Clients of a node that send garbage, floods or nothing: the arm moves on, or is stopped."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from real.hostile_client import GARBAGE, HEALTH
from scripted import TURN, ScriptedNode, rests

from latentplan.real_robot.link import server
from latentplan.real_robot.link.messages import Message
from latentplan.real_robot.loop import node as nodes
from latentplan.real_robot.loop.supervisor import State


def gone(connection: socket.socket) -> bool:
    """Return whether the node has disconnected."""
    with contextlib.suppress(BlockingIOError):
        try:
            while connection.recv(1 << 16):
                pass
        except ConnectionError:
            return True
        return True
    return False


@pytest.mark.parametrize("data", GARBAGE)
def test_garbage_disconnects_that_client_alone(data: bytes) -> None:
    bench = ScriptedNode()

    def script() -> Iterator[None]:
        yield from bench.until_armed()
        other = bench.connect()
        client = bench.raw()
        client.sendall(data)
        yield
        yield
        assert gone(client)
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


def test_a_planner_that_sends_garbage_stops_the_arm() -> None:
    bench = ScriptedNode()

    def script() -> Iterator[None]:
        yield from bench.until_armed()
        bench.planning = False
        bench.planner.send(GARBAGE[0])
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


def test_a_client_that_never_reads_is_disconnected() -> None:
    bench = ScriptedNode()

    def script() -> Iterator[None]:
        yield from bench.until_armed()
        client = bench.raw()
        yield
        bench.node._server.channels[-1].socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        for _ in range(400):
            client.sendall(HEALTH * nodes.MESSAGES)
            yield
            if len(bench.node._server.channels) == 1:
                break
        assert len(bench.node._server.channels) == 1 and bench.armed
        client.close()

    bench.play(script)


def test_clients_that_send_nothing_or_a_byte_at_a_time_are_disconnected(
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


def test_a_refused_request_gets_a_reason() -> None:
    bench = ScriptedNode()
    errors: dict[str, str] = {}

    def script() -> Iterator[None]:
        yield
        watchers = [bench.connect("watch") for _ in range(nodes.WATCHERS)]
        for _ in range(5):
            yield
        client = bench.connect("arm", "dance\n" * 100, "watch", "plan")
        watchers[0].tell(Message("watch", {"id": "again"}))
        bench.planner.tell(Message("watch", {"id": "planner"}))
        for _ in range(5):
            yield
        for channel in (watchers[0], client):
            for message in channel.heard():
                if message.kind == "reply":
                    errors[str(message.values["to"])[:5]] = message.values["error"]
        for channel in (client, *watchers):
            channel.close()

    bench.play(script)
    assert errors["arm"].startswith("node.arm: found another client than the planner")
    assert "is none of plan, watch, arm" in errors["dance"] and "\n" not in errors["dance"]
    assert errors["watch"] == "node.watch: 6 clients watch already; end one of them"
    assert errors["plan"] == "node: another planner drives this arm"
    assert errors["again"].endswith("gets the observations already")


def test_replayed_commands_move_nothing() -> None:
    """The bytes of an old command, by its planner or by another client."""
    bench = ScriptedNode()

    def script() -> Iterator[None]:
        yield from bench.until_armed()
        old = Message("command", {"sequence": 1, "observation": 1}, {"action": -TURN}).encode()
        client = bench.raw()
        client.send(old)
        for _ in range(10):
            bench.planner.send(old)
            yield
            assert bench.armed and bench.speed > 0.39
        assert gone(client)
        assert bench.supervisor.safety.interventions["late"] >= 5
        bench.planning = False
        ticks = 0
        while bench.armed:
            bench.planner.send(old)
            ticks += 1
            yield
        assert ticks <= 17 and "s old, 0.3 s is allowed" in bench.supervisor.reason
        client.close()

    bench.play(script)
    assert rests(bench.written, limits=bench.supervisor.safety.limits)
