"""Clients of a node that answers wrongly or not at all: the package's own error, and no silence."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from latentplan.errors import RobotError
from latentplan.real_robot.link.messages import Message
from latentplan.real_robot.link.remote import RemoteRobot, ask, emergency_stop

HEALTH = {"state": "ready", "reason": "", "ages": {}, "interventions": {}, "ticks": 1}
REPLY = {"health": HEALTH, "to": 1, "error": ""}


@contextmanager
def wrong_node(answer: bytes) -> Iterator[tuple[str, int]]:
    """Listen at the yielded address; give a client this answer, or disconnect if it is empty."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(answer)
                while answer and connection.recv(1 << 16):
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            thread.join()


@pytest.mark.parametrize("answer", [b"", b"no message", Message("spec", {}).encode()])
def test_an_emergency_stop_that_no_node_confirms_is_an_error(answer: bytes) -> None:
    """Such as a tunnel whose far end is down, which accepts a connection and closes it."""
    with (
        wrong_node(answer) as address,
        pytest.raises(RobotError, match="; use the arm's own emergency stop"),
    ):
        emergency_stop(address)


def test_an_emergency_stop_that_is_confirmed_by_tcp() -> None:
    with wrong_node(Message("reply", REPLY).encode()) as address:
        emergency_stop(address)


@pytest.mark.parametrize(
    "values",
    [
        {},
        REPLY | {"health": []},
        REPLY | {"health": HEALTH | {"ages": {"joints": 10**400}}},
        REPLY | {"health": HEALTH | {"ages": {"joints": "old"}}},
        REPLY | {"health": HEALTH | {"mood": "good"}},
    ],
)
def test_a_reply_of_another_version_is_an_error(values: dict[str, Any]) -> None:
    with (
        wrong_node(Message("reply", values).encode()) as address,
        pytest.raises(RobotError, match="start a node of this version"),
    ):
        ask(address, "health")


@pytest.mark.parametrize("number", ["many", None, [1]])
def test_an_observation_of_another_version_is_an_error(number: Any) -> None:
    message = Message("observation", {"health": HEALTH, "number": number})
    with (
        wrong_node(message.encode()) as address,
        pytest.raises(RobotError, match="node: found a observation: .* start a node of this"),
    ):
        RemoteRobot(address, patience=1.0).__enter__()
