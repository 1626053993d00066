"""`latentplan` commands in processes of their own, and what they tell.

A command is forked from a server that has imported torch, which takes seconds. It has a folder, a
session and an output of its own, and kill -9 ends it as any other process.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from latentplan.cli import main

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(  # nothing that starts threads or chooses an OpenGL
    [
        *("latentplan.api.collect", "latentplan.api.evaluate", "latentplan.api.train"),
        *("latentplan.commands.train", "latentplan.models.cfm", "latentplan.training.loop"),
        *("gymnasium", "omegaconf", "vector_quantize_pytorch"),
        *("tensorboard.summary", "torch._dynamo"),  # which the first step imports
    ]
)
PRINTED = "out", "err"


class Command:
    """A `latentplan` command that runs in `folder`; `before` is called in its process first."""

    def __init__(
        self,
        folder: Path,
        *argv: str,
        before: Callable[[], object] | None = None,
        **environment: str,
    ) -> None:
        self._printed = tempfile.TemporaryDirectory(prefix="printed-")
        given = folder, argv, Path(self._printed.name), before, environment
        self._process = FORKS.Process(target=_run, args=given)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def ended(self) -> int | None:
        """The exit code, negative where a signal ended it; None while it runs."""
        return self._process.exitcode

    def end(self, *, within: float = 120.0) -> tuple[int, str, str]:
        """Wait for its end; return the exit code and what it printed to stdout and stderr."""
        self._process.join(within)
        if self.ended is None:
            os.killpg(self.pid, signal.SIGKILL)
            self._process.join()
            raise AssertionError(f"it does not end within {within} s: {self._said()}")
        out, err = self._said()
        return self.ended, out, err

    def _said(self) -> list[str]:
        return [(Path(self._printed.name) / name).read_text() for name in PRINTED]


def _run(
    folder: Path,
    argv: tuple[str, ...],
    printed: Path,
    before: Callable[[], object] | None,
    environment: dict[str, str],
) -> None:
    os.setsid()
    for name, stream in zip(PRINTED, (sys.stdout, sys.stderr), strict=True):
        with (printed / name).open("w") as file:
            os.dup2(file.fileno(), stream.fileno())
    os.chdir(folder)
    os.environ.update(environment)
    if before is not None:
        before()
    sys.exit(main(list(argv)))


def told(command: Command) -> str:
    """Return what a command that must go well prints."""
    code, out, err = command.end()
    assert code == 0, err
    return out


def killed(command: Command, *, when: Path) -> None:
    """Kill -9 the command once files match the glob `when`; return when all its processes ended."""
    deadline = time.monotonic() + 60
    while not list(when.parent.glob(when.name)):
        assert command.ended is None and time.monotonic() < deadline, "it ended too early"
        time.sleep(0.002)
    os.kill(command.pid, signal.SIGKILL)
    assert command.end()[0] == -signal.SIGKILL
    while time.monotonic() < deadline:
        try:
            os.killpg(command.pid, 0)  # workers end with their parent
        except ProcessLookupError:
            return
        time.sleep(0.02)
    raise AssertionError("worker processes are left")


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line with which a command refuses."""
    capsys.readouterr()
    assert main(argv) == 2
    printed = capsys.readouterr().err.splitlines()
    lines = [line for line in printed if not re.search(r"\d/s\b", line)]
    (line,) = [line for line in lines if not re.match(r"\w+ \w+: \d+/\d+ ", line)]
    assert line.startswith("latentplan: ")
    return line
