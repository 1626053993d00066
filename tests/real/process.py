"""A process of a harness: its lines of stdin and stdout; it ends with its parent."""

from __future__ import annotations

import ctypes
import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def _end_with_parent() -> None:
    """Let the kernel kill this process when the harness is killed; an arm must not be left over."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Process:
    """A process; the lines that it prints are kept."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.command = command
        paths = f"{HERE.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        self.popen = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment},
            preexec_fn=_end_with_parent,
        )
        self.lines: queue.Queue[str] = queue.Queue()
        self.errors: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()
        threading.Thread(target=self._read_errors, daemon=True).start()

    def write(self, line: str) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(line + "\n")
        self.popen.stdin.flush()

    def until(self, wanted: Callable[[str], bool], *, within: float = 60.0) -> str:
        """Return the next line that is wanted; AssertionError where none comes."""
        end = time.monotonic() + within
        while True:
            try:
                line = self.lines.get(timeout=max(0.01, end - time.monotonic()))
            except queue.Empty:
                line = ""
            if line and wanted(line):
                return line
            if time.monotonic() > end or (not line and self.popen.poll() is not None):
                said = "".join(self.errors)[-2000:]
                raise AssertionError(f"{' '.join(self.command)}: {self.popen.poll()} {said}")

    def event(self, name: str, *, within: float = 30.0) -> dict[str, Any]:
        """Return the next event of that name that a planner prints."""
        said = f'"event": "{name}"'
        return dict(json.loads(self.until(lambda line: said in line, within=within)))

    def signal(self, number: signal.Signals) -> float:
        """Send a signal; return when."""
        now = time.monotonic()
        self.popen.send_signal(number)
        return now

    def end(self) -> None:
        """End it, at once if need be."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGCONT)
            self.popen.terminate()
            try:
                self.popen.wait(5)
            except subprocess.TimeoutExpired:
                self.popen.kill()
        self.popen.wait(5)

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self.lines.put(line)

    def _read_errors(self) -> None:
        assert self.popen.stderr is not None
        self.errors.extend(self.popen.stderr)
