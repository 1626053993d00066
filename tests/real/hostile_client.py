"""A hostile client: `python tests/real/hostile_client.py PORT KIND`, until its parent ends it.

`garbage` sends invalid messages, a connection each; `flood` sends valid requests without a pause
and reads no reply; `trickle` sends a byte at a time on many connections, and `connections` opens
them by the hundred.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import time

import numpy as np

from latentplan.real_robot.link.messages import LENGTHS, Message


def message(head: object, body: bytes = b"") -> bytes:
    """Return the bytes of a message with any head, valid or not."""
    text = json.dumps(head).encode()
    return LENGTHS.pack(len(text), len(body)) + text + body


HEALTH = Message("health", {"id": 1}).encode()
GARBAGE = (
    message({"kind": "health", "values": {}, "arrays": {"a": ["uint8", [2**64]]}}),
    message({"kind": "health", "values": [], "arrays": {}}),
    message({"kind": "health", "values": {}, "arrays": {}}, bytes(64)),
    Message("command", {"observation": 1, "sequence": 1}, {"action": np.zeros(8)}).encode(),
    message([[[]]]),
    b"GET / HTTP/1.1\r\n\r\n",
    b"\xff" * 60,
    b"\0" * 60,
)


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=5)


def garbage(port: int) -> None:
    for data in GARBAGE:
        with contextlib.suppress(OSError), connect(port) as connection:
            connection.sendall(data)
            connection.settimeout(0.1)
            connection.recv(1 << 16)


def flood(port: int) -> None:
    connections = [connect(port) for _ in range(4)]
    for connection in connections:
        connection.setblocking(False)
    while True:
        for i, connection in enumerate(connections):
            try:
                connection.send(HEALTH * 1000)
            except BlockingIOError:
                continue
            except OSError:
                with contextlib.suppress(OSError):
                    connections[i] = connect(port)
                    connections[i].setblocking(False)
        time.sleep(1e-3)


def trickle(port: int) -> None:
    connections = [connect(port) for _ in range(20)]
    for i in range(len(HEALTH)):
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.send(HEALTH[i : i + 1])
        time.sleep(0.01)
    for connection in connections:
        connection.close()


def connections(port: int) -> None:
    opened = []
    for _ in range(500):
        with contextlib.suppress(OSError):
            opened.append(connect(port))
    for connection in opened:
        connection.close()


if __name__ == "__main__":
    port, kind = int(sys.argv[1]), sys.argv[2]
    act = {"garbage": garbage, "flood": flood, "trickle": trickle, "connections": connections}[kind]
    print("ready", flush=True)
    while True:
        act(port)
