"""A training that is killed at given moments and resumed after each, in processes of their own."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from processes import Command

from latentplan.training.state import steps_done


def driven(
    name: str, data: Path, run: Path, *, moments: Sequence[str], overrides: Sequence[str]
) -> list[tuple[int, int]]:
    """Train with --resume once for each moment; return the exit codes and the steps done.

    A moment is `end`, `replace:N`, `kill:STEP+SECONDS` or `interrupt:STEP+SECONDS`. Of a training
    in stages, the steps are 0.
    """
    found = []
    argv = ["train", name, "--data", str(data), "--run", str(run), "--resume", *overrides]
    for moment in moments:
        what, _, when = moment.partition(":")
        before = partial(_kill_at, int(when)) if what == "replace" else None
        command = Command(run.parent, *argv, before=before)
        if what in ("kill", "interrupt"):  # some time after the n-th step was saved
            step, _, delay = when.partition("+")
            while steps_done(run) < int(step) and command.ended is None:
                time.sleep(0.002)
            time.sleep(float(delay))
            os.kill(command.pid, signal.SIGKILL if what == "kill" else signal.SIGINT)
        code, _, err = command.end()
        assert "Traceback" not in err, err
        found.append((code, steps_done(run)))
    return found


def _kill_at(when: int) -> None:
    """Kill this process as the n-th file is to take its place, or after it if n is negative."""
    replace, calls = os.replace, 0

    def counted(*files: str | Path) -> None:
        nonlocal calls
        calls += 1
        if calls == abs(when):
            if when < 0:
                replace(*files)
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*files)

    os.replace = counted
