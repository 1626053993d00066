"""Messages between a node and its planner: JSON and arrays over a local socket, no pickle.

A message is eight bytes (lengths of head and body, big-endian), the head in JSON, and the body:
the bytes of the arrays that the head names.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from latentplan.errors import RobotError
from latentplan.types import Array

LENGTHS = struct.Struct(">II")
LARGEST = 1 << 26  # bytes of a head and of a body: 64 MiB
DTYPES = ("float32", "float64", "uint8")
CHUNK = 1 << 18  # bytes read at once


@dataclass(frozen=True)
class Message:
    """A message from one side to the other."""

    kind: str
    values: Mapping[str, Any] = field(default_factory=dict)  # JSON values
    arrays: Mapping[str, Array] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Return the bytes of this message."""
        arrays = {name: np.ascontiguousarray(array) for name, array in self.arrays.items()}
        shapes = {name: [str(array.dtype), array.shape] for name, array in arrays.items()}
        head = {"kind": self.kind, "values": self.values, "arrays": shapes}
        text, body = json.dumps(head).encode(), b"".join(a.tobytes() for a in arrays.values())
        return LENGTHS.pack(len(text), len(body)) + text + body


class Channel:
    """One end of a connection that never blocks: bytes that cannot be sent now are sent later."""

    def __init__(self, connection: socket.socket) -> None:
        """Take a connected socket; it is closed with the channel."""
        connection.setblocking(False)
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connection
        self._in, self._out = bytearray(), bytearray()

    @property
    def idle(self) -> bool:
        """Return whether every message has gone out; if the peer hangs, they pile up."""
        return not self._out

    def tell(self, message: Message) -> None:
        """Send a message, now as much of it as possible; RobotError if the peer is gone."""
        self._out += message.encode()
        self.flush()

    def flush(self) -> None:
        """Send the bytes that still wait; RobotError if the peer is gone."""
        try:
            while self._out:
                del self._out[: self.socket.send(memoryview(self._out)[:CHUNK].tobytes())]
        except BlockingIOError:
            return
        except OSError as e:
            raise RobotError(f"connection: lost ({e.strerror})") from None

    def heard(self) -> Iterator[Message]:
        """Yield the received messages, oldest first; RobotError if the peer is gone."""
        gone = self._receive()
        while (message := self._next()) is not None:
            yield message
        if gone:
            raise RobotError(f"connection: {gone}")

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()

    def _receive(self) -> str:
        """Read the received bytes; return why the connection ended, empty if it has not."""
        try:
            while True:
                chunk = self.socket.recv(CHUNK)
                if not chunk:
                    return "closed by the other side"
                self._in += chunk
                if len(chunk) < CHUNK:
                    return ""
        except BlockingIOError:
            return ""
        except OSError as e:
            return f"lost ({e.strerror})"

    def _next(self) -> Message | None:
        if len(self._in) < LENGTHS.size:
            return None
        head, body = LENGTHS.unpack_from(self._in)
        if max(head, body) > LARGEST:
            raise RobotError(f"connection: a message of {head + body} bytes; is the peer a node?")
        end = LENGTHS.size + head + body
        if len(self._in) < end:
            return None
        text = bytes(self._in[LENGTHS.size : LENGTHS.size + head])
        data = bytes(self._in[LENGTHS.size + head : end])
        del self._in[:end]
        return _decode(text, data)


def _decode(text: bytes, body: bytes) -> Message:
    """Return the message of a head and a body; RobotError if they are invalid."""
    try:
        head = json.loads(text)
        arrays, at = {}, 0
        for name, (dtype, shape) in head["arrays"].items():
            if dtype not in DTYPES or not all(isinstance(n, int) and n >= 0 for n in shape):
                raise ValueError(f"{name} is of {dtype} {shape}")
            array = np.frombuffer(body, dtype, int(np.prod(shape)), at).reshape(shape)
            arrays[name] = array
            at += array.nbytes
        return Message(str(head["kind"]), dict(head["values"]), arrays)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise RobotError(f"connection: not a message ({type(e).__name__}: {e})") from None
