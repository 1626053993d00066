"""The connections of a node's clients: whose turn it is, and who is replaced."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from latentplan.real_robot.link.messages import Channel
from latentplan.real_robot.link.server import CLIENTS, Server


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0))
    yield server
    server.leave()


def connect(server: Server, count: int) -> list[Channel]:
    """Connect clients; return the server's channels of them, in that order."""
    before = list(server.channels)
    for _ in range(count):
        with socket.create_connection(server.address):
            server.accept(keep=server.channels)
    return [channel for channel in server.channels if channel not in before]


def turn(server: Server, first: Channel | None = None) -> list[Channel]:
    """Return who is served if there is time for one."""
    return list(server.turns(first=first, seconds=-1))


def test_each_gets_its_turn_and_the_first_gets_every_one(server: Server) -> None:
    a, b, c = connect(server, 3)
    assert [turn(server)[0] for _ in range(4)] == [a, b, c, a]
    (d,) = connect(server, 1)
    assert [turn(server)[0] for _ in range(5)] == [b, c, a, d, b]
    assert turn(server, first=d) == [d]
    assert list(server.turns(first=d, seconds=10)) == [d, c, a, b]


def test_who_is_closed_in_a_turn_gets_none(server: Server) -> None:
    a, b, c = connect(server, 3)
    served = []
    for channel in server.turns(first=None, seconds=10):
        served.append(channel)
        if channel is a:
            server.close(a)
            server.close(b)
    assert served == [a, c] and server.channels == [c]


def test_too_many_connections_replace_the_oldest_even_if_it_was_served(server: Server) -> None:
    planner, oldest, waiting = connect(server, 3)
    assert [turn(server)[0] for _ in range(2)] == [planner, oldest]
    more = connect(server, CLIENTS - 1)
    server.accept(keep=[planner])
    assert server.channels == [planner, waiting, *more]
    assert oldest.socket.fileno() < 0
    assert turn(server) == [waiting]
