"""A training that is killed at given moments and resumed after each, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# A fork at each moment, so that torch is imported once. Before a fork nothing may start threads.
DRIVER = """
import os, signal, sys, time
from pathlib import Path
import latentplan.api.train, latentplan.data.windows
import latentplan.training.loop, tensorboard.summary, torch._dynamo
from latentplan import registry
from latentplan.cli import main
from latentplan.training.state import steps_done

kind, name, data, run, moments, *overrides = sys.argv[1:]
registry.get(kind, name)

def killed_at(when):  # the n-th time that a file is to take its place, or after it if negative
    replace, calls = os.replace, 0
    def counted(*files):
        nonlocal calls
        calls += 1
        if calls == abs(when):
            if when < 0:
                replace(*files)
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*files)
    os.replace = counted

for moment in moments.split():
    what, _, when = moment.partition(":")
    pid = os.fork()
    if pid == 0:
        if what == "replace":
            killed_at(int(when))
        os._exit(main(["train", name, "--data", data, "--run", run, "--resume", *overrides]))
    if what in ("kill", "interrupt"):  # some time after the n-th step was saved
        step, _, delay = when.partition("+")
        while steps_done(Path(run)) < int(step):
            time.sleep(0.002)
        time.sleep(float(delay))
        os.kill(pid, signal.SIGKILL if what == "kill" else signal.SIGINT)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(moment, code, steps_done(Path(run)), flush=True)
"""


def driven(
    kind: str, name: str, data: Path, run: Path, *, moments: Sequence[str], overrides: Sequence[str]
) -> list[tuple[int, int]]:
    """Train with --resume once for each moment; return the exit codes and the steps done.

    A moment is `end`, `replace:N`, `kill:STEP+SECONDS` or `interrupt:STEP+SECONDS`. Of a training
    in stages, the steps are 0.
    """
    given = [kind, name, str(data), str(run), " ".join(moments), *overrides]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, *given],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    found = [line for line in lines if len(line) == 3 and line[0] in moments]
    assert [moment for moment, *_ in found] == list(moments)
    return [(int(code), int(steps)) for _, code, steps in found]
