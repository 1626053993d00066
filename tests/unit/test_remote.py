"""Clients of a node that answers wrongly or not at all: the package's own error, and no silence."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from latentplan.errors import RobotError
from latentplan.real_robot.link.messages import Message
from latentplan.real_robot.link.remote import emergency_stop

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
