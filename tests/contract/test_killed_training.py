"""`kill -9` at any moment of the training of any registered learner, then resume: the same run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from trainings import every_name, settings, small, stored, tensors

# A fork at each moment, so that torch is imported once. Before a fork nothing may start threads.
DRIVER = """
import os, signal, sys
import latentplan.api.train, latentplan.data.windows
import latentplan.training.loop, tensorboard.summary, torch._dynamo
from latentplan import registry
from latentplan.cli import main

kind, name, data, run, moments, *overrides = sys.argv[1:]
registry.get(kind, name)

def killed_at(when):  # the n-th time that a file is to take its place, before or after
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
    pid = os.fork()
    if pid == 0:
        if moment != "end":
            killed_at(int(moment))
        os._exit(main(["train", name, "--data", data, "--run", run, "--resume", *overrides]))
    print(moment, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def driven(kind: str, name: str, data: Path, run: Path, moments: str) -> list[int]:
    """Train with --resume over and over; return the exit codes."""
    overrides = [*settings(kind, name), *small(name)]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, kind, name, str(data), str(run), moments, *overrides],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    return [int(line[1]) for line in lines if len(line) == 2 and line[0] in moments.split()]


@pytest.mark.slow
@every_name
def test_killed_at_any_file_and_resumed_it_is_the_same_run(
    kind: str, name: str, tmp_path: Path
) -> None:
    data, whole, cut = stored(tmp_path / "data.zarr"), tmp_path / "whole", tmp_path / "cut"
    assert driven(kind, name, data, whole, "end") == [0]
    moments = [1, -2, 3, -4, 5, -6, 7, 8, -9, 11, -13]
    found = driven(kind, name, data, cut, " ".join([*map(str, moments), "end"]))
    kills = found.count(-9)
    assert kills >= 6 and set(found[:kills]) == {-9} and set(found[kills:]) == {0}
    assert tensors(cut) == tensors(whole)
