"""The sockets of a node: clients over TCP, and the emergency stop over UDP at the same port.

Nothing that clients send or withhold takes more of a tick than its share, and nothing of it delays
the emergency stop, which has a socket of its own and is read first.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Collection, Iterator

from latentplan.errors import RobotError
from latentplan.real_robot.link.messages import Channel, one_line

STOP = b"latentplan stop "  # and the reason, in UTF-8: a datagram of the emergency stop
STOPPED = b"latentplan stopped"  # the answer
DATAGRAM = 512  # bytes
FLOOD = 32  # datagrams a tick; as many may hide an emergency stop, so they are one
CLIENTS = 8  # connections that are neither the planner's nor a watcher's
ACCEPTED = 8  # new connections a tick
BODY = 1 << 18  # bytes of a client's message
WAITING = 1 << 18  # bytes that wait for a client to read them, besides an observation
PATIENCE = 5.0  # s in which a client completes a message, and reads what waits for it
TRIES = 20  # to find a port that is free for both


class Server:
    """The connections of a node's clients."""

    def __init__(self, address: tuple[str, int]) -> None:
        """Listen at `address`; with port 0, at a free port. RobotError if it is in use."""
        self._listener, self._alarm = _bind(address)
        self.address: tuple[str, int] = self._listener.getsockname()
        self.channels: list[Channel] = []  # the oldest first
        self._served: dict[Channel, float] = {}  # s, monotonic: their last turn, or their arrival

    def emergency(self) -> str:
        """Return the reason of an emergency stop that was sent by UDP; empty if none was."""
        reason = ""
        for _ in range(FLOOD):
            try:
                data, sender = self._alarm.recvfrom(DATAGRAM)
            except BlockingIOError:
                return reason
            except OSError:  # an answer to a client that was gone
                continue
            if data.startswith(STOP):
                words = one_line(data[len(STOP) :].decode(errors="replace"))
                reason = reason or words or "emergency stop"
                with contextlib.suppress(OSError):
                    self._alarm.sendto(STOPPED, sender)
        return reason or f"emergency stop: more than {FLOOD} datagrams in a tick"

    def accept(self, *, keep: Collection[Channel]) -> None:
        """Accept new connections; too many replace the oldest ones but those to `keep`."""
        for _ in range(ACCEPTED):
            try:
                connection, _ = self._listener.accept()
            except OSError:  # none waits, it is gone again, or there are too many open files
                break
            channel = Channel(connection, body=BODY, waiting=WAITING)
            self.channels.append(channel)
            self._served[channel] = time.monotonic()
        others = [channel for channel in self.channels if channel not in keep]
        for channel in others[:-CLIENTS]:
            self.close(channel)

    def turns(self, *, first: Channel | None, seconds: float) -> Iterator[Channel]:
        """Yield connections until `seconds` have passed: `first`, then the longest unserved."""
        end = time.monotonic() + seconds
        for channel in sorted(self.channels, key=lambda c: (c is not first, self._served[c])):
            if channel not in self.channels:  # closed since
                continue
            self._served[channel] = time.monotonic()
            yield channel
            if time.monotonic() > end:
                return

    def close(self, channel: Channel) -> None:
        """Close a connection."""
        channel.close()
        self.channels.remove(channel)
        del self._served[channel]

    def leave(self) -> None:
        """Close all connections and sockets."""
        for channel in list(self.channels):
            self.close(channel)
        self._listener.close()
        self._alarm.close()


def _bind(address: tuple[str, int]) -> tuple[socket.socket, socket.socket]:
    """Return sockets of TCP and UDP at one port; RobotError if it is not available."""
    host, port = address
    tries = TRIES if port == 0 else 1
    while True:
        tries -= 1
        try:
            return _bind_once(address)
        except OSError as e:
            if tries == 0:
                raise RobotError(
                    f"node.address: {host}:{port} is not available ({e.strerror}); does another "
                    "node drive this arm?"
                ) from None


def _bind_once(address: tuple[str, int]) -> tuple[socket.socket, socket.socket]:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        alarm = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        alarm.bind(listener.getsockname())
        listener.listen()
        listener.setblocking(False)
        alarm.setblocking(False)
        stack.pop_all()
        return listener, alarm
