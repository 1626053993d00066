"""A client that means harm: `python tests/real/guests.py PORT KIND`, until its parent ends it.

`garbage` sends what is no message, as fast as it is hung up on; `flood` sends valid requests
without a pause and reads no reply; `trickle` sends a byte at a time on many connections, and
`connections` opens them by the hundred.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import sys
import time


def message(head: object, body: bytes = b"") -> bytes:
    text = json.dumps(head).encode()
    return struct.pack(">II", len(text), len(body)) + text + body


HEALTH = message({"kind": "health", "values": {"id": 1}, "arrays": {}})
COMMAND = {"kind": "command", "values": {"observation": 1, "sequence": 1}}
GARBAGE = (
    message({"kind": "health", "values": {}, "arrays": {"a": ["uint8", [2**64]]}}),
    message({"kind": "health", "values": [], "arrays": {}}),
    message(COMMAND | {"arrays": {"action": ["float64", [8]]}}, bytes(64)),
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
