"""Messages between a node and its clients: JSON and arrays over a socket, no pickle.

A message is eight bytes (lengths of head and body, big-endian), the head in JSON, and the body:
the bytes of the arrays that the head names. The other side is never trusted: whatever its bytes,
`decode` returns a message or raises RobotError, and takes no more memory than a few times theirs.
"""

from __future__ import annotations

import itertools
import json
import math
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from latentplan.errors import RobotError
from latentplan.types import Array

LENGTHS = struct.Struct(">II")
HEAD = 1 << 16  # bytes of a head, at most: its JSON becomes objects, which are larger
BODY = 1 << 26  # bytes of a body, at most: 64 MiB of images
AXES = 8  # of an array, at most
DTYPES = {"float32": 4, "float64": 8, "uint8": 1}  # bytes of a number
CHUNK = 1 << 18  # bytes read or sent at once
READ = 1 << 20  # bytes read in a call of `heard`, at most
TEXT = 200  # characters of the other side's text that an error or a log repeats, at most


@dataclass(frozen=True)
class Message:
    """A message from one side to the other."""

    kind: str
    values: Mapping[str, Any] = field(default_factory=dict)  # JSON values, finite
    arrays: Mapping[str, Array] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Return the bytes of this message; RobotError if the other side would refuse them."""
        arrays = {name: np.ascontiguousarray(array) for name, array in self.arrays.items()}
        shapes = {name: [str(array.dtype), array.shape] for name, array in arrays.items()}
        head = {"kind": self.kind, "values": self.values, "arrays": shapes}
        try:
            text = json.dumps(head, allow_nan=False).encode()
        except ValueError as e:
            raise RobotError(f"message {self.kind}: {e}; every number must be finite") from None
        body = b"".join(array.tobytes() for array in arrays.values())
        if len(text) > HEAD or len(body) > BODY:
            raise RobotError(
                f"message {self.kind}: {len(text)} bytes of values and {len(body)} of arrays, "
                f"allowed are {HEAD} and {BODY}; send less"
            )
        return LENGTHS.pack(len(text), len(body)) + text + body


class Channel:
    """One end of a connection that never blocks, with bounds on all that the other side may do.

    Bytes that cannot be sent now are sent later, `waiting` of them and a message at most. `heard`
    reads a bounded number of bytes, and none while more than a message waits to be yielded, so that
    the socket slows down a side that sends too fast.
    """

    def __init__(
        self, connection: socket.socket, *, body: int = BODY, waiting: int = BODY
    ) -> None:
        """Take a connected socket, closed with the channel, and bounds in bytes."""
        connection.setblocking(False)
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connection
        self._body, self._waiting = body, waiting
        self._in, self._out = bytearray(), bytearray()
        self._largest = 0  # bytes of a message so far, which may wait besides
        self._gone = ""  # the reason that the connection ended
        # s, monotonic: the last complete message or the first byte after it; the last byte sent.
        self._heard = self._sent = time.monotonic()

    @property
    def idle(self) -> bool:
        """Return whether every message has gone out; if the other side hangs, they pile up."""
        return not self._out

    def tell(self, message: Message) -> None:
        """Send a message, now as much of it as possible; RobotError as `send` does."""
        self.send(message.encode())

    def send(self, data: bytes) -> None:
        """Send the bytes of a message; RobotError if the other side is gone or does not read."""
        self._largest = max(self._largest, len(data))
        if len(self._out) + len(data) > self._waiting + self._largest:
            raise RobotError("connection: the other side does not read")
        if not self._out:
            self._sent = time.monotonic()
        self._out += data
        self.flush()

    def flush(self) -> None:
        """Send the bytes that still wait; RobotError if the other side is gone."""
        try:
            while self._out:
                del self._out[: self.socket.send(memoryview(self._out)[:CHUNK].tobytes())]
                self._sent = time.monotonic()
        except BlockingIOError:
            return
        except OSError as e:
            raise RobotError(f"connection: lost ({e.strerror})") from None

    def heard(self, most: int | None = None) -> Iterator[Message]:
        """Yield received messages, oldest first, `most` of them at most.

        Raises RobotError if the bytes are no message, or, after the last one, if the other side is
        gone.
        """
        if not self._gone:
            self._gone = self._receive()
        for _ in itertools.count() if most is None else range(most):
            message = self._next()
            if message is None:
                if self._gone:
                    raise RobotError(f"connection: {self._gone}")
                return
            yield message

    def refuse_delay(self, patience: float, *, silence: bool = False) -> None:
        """Raise RobotError if the other side takes over `patience` s to send or read a message.

        With `silence`, also if it has sent nothing for as long.
        """
        now = time.monotonic()
        if self._out and now - self._sent > patience:
            raise RobotError(f"connection: the other side has not read for {patience} s")
        if (self._in or silence) and now - self._heard > patience:
            raise RobotError(f"connection: no complete message within {patience} s")

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()

    def _receive(self) -> str:
        """Read received bytes; return why the connection ended, empty if it has not."""
        room = min(READ, LENGTHS.size + HEAD + self._body - len(self._in))
        try:
            while room > 0:
                chunk = self.socket.recv(min(CHUNK, room))
                if not chunk:
                    return "closed by the other side"
                if not self._in:
                    self._heard = time.monotonic()
                self._in += chunk
                room -= len(chunk)
        except BlockingIOError:
            return ""
        except OSError as e:
            return f"lost ({e.strerror})"
        return ""

    def _next(self) -> Message | None:
        if len(self._in) < LENGTHS.size:
            return None
        head, body = LENGTHS.unpack_from(self._in)
        if head > HEAD or body > self._body:
            raise RobotError(f"connection: a message of {head + body} bytes; is it of latentplan?")
        end = LENGTHS.size + head + body
        if len(self._in) < end:
            return None
        text = bytes(self._in[LENGTHS.size : LENGTHS.size + head])
        data = bytes(self._in[LENGTHS.size + head : end])
        del self._in[:end]
        self._heard = time.monotonic()
        return decode(text, data)


def decode(text: bytes, body: bytes) -> Message:
    """Return the message of a head and a body; RobotError if they are invalid."""
    try:
        head = json.loads(text, parse_constant=_refuse, parse_float=_finite)
        kind, values, shapes = head["kind"], head["values"], head["arrays"]
        if not (isinstance(kind, str) and isinstance(values, dict) and isinstance(shapes, dict)):
            raise ValueError("kind, values or arrays of another type")
        arrays, at = {}, 0
        for name, (dtype, shape) in shapes.items():
            count = _count(dtype, shape, left=len(body) - at)
            arrays[name] = np.frombuffer(body, dtype, count, at).reshape(shape)
            at += arrays[name].nbytes
        if at != len(body):
            raise ValueError(f"{len(body)} bytes of arrays, {at} are described")
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as e:
        found = one_line(f"{type(e).__name__}: {e}")
        raise RobotError(f"connection: not a message ({found})") from None
    return Message(kind, values, arrays)


def one_line(text: object) -> str:
    """Return a text as one short line of printable characters, for errors and logs."""
    return "".join(c if c.isprintable() else " " for c in str(text)[:TEXT]).strip()


def _count(dtype: Any, shape: Any, *, left: int) -> int:
    """Return how many numbers an array has; ValueError unless they are in the `left` bytes."""
    if (
        not isinstance(dtype, str)
        or dtype not in DTYPES
        or not isinstance(shape, list)
        or len(shape) > AXES
        or not all(type(n) is int and 0 <= n <= BODY for n in shape)
    ):
        raise ValueError(f"an array of {one_line(dtype)} {one_line(shape)}")
    count = math.prod(shape)
    if count * DTYPES[dtype] > left:
        raise ValueError(f"an array of {dtype} {shape} in {left} bytes")
    return count


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text} is no number")
    return number
