"""A node as a process of its own: its command line, its start and its end."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Self

from latentplan.errors import ConfigError, RobotError, check_range

LISTENS = re.compile(r"listens at (\S+):(\d+)$")
PATIENCE = 15.0  # s that a node has to stop its arm and end


def argv(
    backend: str,
    *,
    robot: str = "panda",
    address: tuple[str, int] = ("127.0.0.1", 5757),
    overrides: Sequence[str] = (),
    python: str = sys.executable,
) -> list[str]:
    """Return the command line that starts a node, by hand or from a launch file.

    `overrides` are key=value settings of the sections backend, safety and supervisor.
    """
    command = [python, "-m", "latentplan.cli", "robot", "--backend", backend, "--robot", robot]
    return [*command, "--address", f"{address[0]}:{address[1]}", *overrides]


def announcement(arm: str, backend: str, address: tuple[str, int]) -> str:
    """Return the line that a node prints once it listens and its driver is connected."""
    return f"node: {arm} by {backend} listens at {address[0]}:{address[1]}"


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT; ConfigError if it is invalid."""
    host, colon, port = text.rpartition(":")
    try:
        host.encode("idna")  # as the network's names are
    except UnicodeError:
        host = ""
    if not colon or not host or not re.fullmatch("[0-9]{1,9}", port):
        raise ConfigError(f"robot.address: found {text!r}, need HOST:PORT such as 127.0.0.1:5757")
    check_range("robot.address.port", int(port), 0, 65535)
    return host, int(port)


class NodeProcess:
    """A node that runs for the length of a with block; it stops its arm before it ends."""

    def __init__(self, command: Sequence[str], *, patience: float = 60.0) -> None:
        """Take the command line of `argv`; the node must listen within `patience` s."""
        self._command, self._patience = list(command), patience
        self.address: tuple[str, int] = ("", 0)  # at which the node listens
        self._lines: deque[str] = deque(maxlen=20)  # its last lines

    def __enter__(self) -> Self:
        """Start the node and wait until it listens; RobotError with its output if it ends."""
        try:
            # In its own session Ctrl-C reaches only the planner, which stops arm and node.
            self._process = subprocess.Popen(
                self._command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        except OSError as e:
            found = f"robot.python {self._command[0]}: cannot be run"
            raise RobotError(f"{found} ({e.strerror})") from None
        assert self._process.stdout is not None
        self._heard = threading.Event()
        self._reader = threading.Thread(target=self._read, args=[self._process.stdout], daemon=True)
        self._reader.start()
        if not self._heard.wait(self._patience) or not self.address[0]:
            self._leave()
            last = self._lines[-1] if self._lines else "none"
            raise RobotError(f"node: does not run; its output: {last.removeprefix('latentplan: ')}")
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the arm and end the node."""
        self._leave()

    def _leave(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(1.0)

    def _read(self, lines: IO[str]) -> None:
        """Keep its last lines; once it listens, print each line."""
        for line in lines:
            found = LISTENS.search(line.rstrip())
            if found and not self._heard.is_set():
                self.address = found[1], int(found[2])
                for earlier in self._lines:  # warnings
                    print(earlier, file=sys.stderr, flush=True)
                self._heard.set()
            elif self._heard.is_set():
                print(line.rstrip(), file=sys.stderr, flush=True)
            self._lines.append(line.rstrip())
        self._heard.set()


@dataclass(frozen=True)
class Parameters:
    """The parameters of a ROS node besides its sections of settings."""

    robot: str = "panda"  # a name, or a file that describes an arm
    address: str = "127.0.0.1:5757"  # where planners connect
    period: float = 0.1  # s that an action holds

    def __post_init__(self) -> None:
        """Raise ConfigError if a field is out of its range."""
        check_range("mpc.period", self.period, 1e-3, 10)
        parse_address(self.address)
