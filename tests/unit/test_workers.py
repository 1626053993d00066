"""Numbered work by processes that may fail, be killed, or be left alone."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import active_children
from pathlib import Path

import pytest

from latentplan.workers import DEATHS, WorkerDied, each


def squares() -> Callable[[int], int]:
    return _square


def _square(index: int) -> int:
    time.sleep(0.01 * (index % 3))  # they end in another order
    return index * index


def large() -> Callable[[int], bytes]:
    return _large


def _large(index: int) -> bytes:
    return bytes([index]) * 3_000_000  # many times what a pipe holds


def failing(how: str) -> Callable[[int], object]:
    return partial(_fail, how)


def _fail(how: str, index: int) -> object:
    if index < 3:
        return index
    if how == "raise":
        raise ValueError("the third")
    if how == "raise what cannot be pickled":
        raise ValueError(threading.Lock())
    if how == "die":
        os._exit(1)
    return threading.Lock()


def test_results_come_in_order() -> None:
    assert list(each(squares, range(5, 40), workers=3)) == [i * i for i in range(5, 40)]
    assert list(each(squares, range(0), workers=3)) == []


def test_workers_killed_while_they_hand_in_are_replaced() -> None:
    """Most of a worker's time here is that in which its result is half in its pipe."""
    rng = random.Random(0)
    killed = []
    for index, result in enumerate(each(large, range(60), workers=2)):
        assert result == _large(index)
        if index % 6 == 5:
            time.sleep(0.005 * rng.random())
            worker = rng.choice(active_children())
            worker.kill()
            killed.append(worker.pid)
    assert index == 59 and len(set(killed)) > 5  # one that is dying may be chosen again


@pytest.mark.parametrize(
    ("how", "error", "match"),
    [
        ("raise", ValueError, "the third"),
        ("raise what cannot be pickled", RuntimeError, "ValueError.*lock"),
        ("return what cannot be pickled", TypeError, "pickle"),
        ("die", WorkerDied, f"died.*{DEATHS} times at episode 3"),
    ],
)
def test_a_failure_is_raised_after_the_finished_results(
    how: str, error: type[Exception], match: str
) -> None:
    done = []
    with pytest.raises(error, match=match) as told:
        for result in each(partial(failing, how), range(20), workers=2):
            done.append(result)
    assert done == [0, 1, 2]
    if how == "raise":  # where in the worker it was
        assert "in _fail" in told.value.__notes__[0]
    assert not active_children()


def test_left_early_the_workers_end() -> None:
    results = each(squares, range(1000), workers=2)
    assert next(results) == 0 and len(active_children()) == 2
    results.close()
    assert not active_children()


def test_a_program_that_leaves_them_alone_ends(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from test_workers import squares\n"
        "from latentplan.workers import each\n"
        "if __name__ == '__main__':\n"
        "    results = each(squares, range(40), workers=2)\n"
        "    print(next(results))\n"
        "    raise SystemExit(3)\n"
    )
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        [sys.executable, str(program)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout.strip(), ended.stderr) == (3, "0", "")
