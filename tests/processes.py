"""`latentplan` commands as processes of their own, and what they tell."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from latentplan.cli import main


def started(folder: Path, *argv: str, **environment: str) -> subprocess.Popen[str]:
    """Start a `latentplan` command in `folder`, in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "latentplan.cli", *argv],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def told(process: subprocess.Popen[str]) -> str:
    """Return what a command that must go well prints."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def killed(process: subprocess.Popen[str], *, when: Path) -> None:
    """Kill -9 the command once files match the glob `when`; return when all its processes ended."""
    deadline = time.monotonic() + 60
    while not list(when.parent.glob(when.name)):
        assert process.poll() is None and time.monotonic() < deadline, "it ended too early"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)  # workers end with their parent
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
