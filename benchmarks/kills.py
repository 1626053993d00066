"""Kill -9 at random moments, a rerun after each, and a comparison with an undisturbed run.

    python benchmarks/kills.py --kills 15 --json benchmarks/kills.json   # of each operation
    python benchmarks/kills.py --kills 2 --only "train cfm"
    python benchmarks/kills.py page                                      # docs/results/kills.md

A trial runs the command lines of an operation (`kills_operations.py`) in a folder of its own. They
are killed one to three times, each after a time drawn within that of an undisturbed run, and run
again as a user would type them; then all that they have written is compared with what an
undisturbed run writes, bit for bit, and what is left over is counted. Where a worker is killed,
the command must go on by itself. This process has all modules imported and forks for each try.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process that forks has no threads

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

import kills_operations as operations  # noqa: E402
from kills_operations import Operation  # noqa: E402

from latentplan.files import replacing  # noqa: E402

PAGE = ROOT / "docs/results/kills.md"
JSON = ROOT / "benchmarks/kills.json"
MOST = 3  # kills of a trial
PATIENCE = 300.0  # s until a command that is not killed hangs
GONE = 20.0  # s until the workers of a killed command have ended

Row = dict[str, Any]


class Broken(Exception):
    """An operation fails, or differs, without having been killed."""


class Try:
    """A forked process that runs something in a folder, in a session of its own."""

    def __init__(self, folder: Path, run: Callable[[], int]) -> None:
        """Start it; what it prints goes to a file beside the folder."""
        self.printed = folder.with_suffix(".out")
        self.pid = os.fork()
        if self.pid == 0:
            code = 99
            try:
                os.setsid()
                signal.signal(signal.SIGINT, signal.default_int_handler)
                ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # end with the harness
                out = os.open(self.printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(out, 1), os.dup2(out, 2)
                os.chdir(folder)
                tempfile.tempdir = os.environ["TMPDIR"] = str(folder.with_suffix(".tmp"))
                code = run()
                sys.stdout.flush()
            except BaseException:
                import traceback

                traceback.print_exc()
                sys.stderr.flush()
            finally:
                os._exit(code)

    def wait(self, seconds: float) -> int | None:
        """Return the exit code; None if it has not ended after so many seconds."""
        end = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > end:
                return None
            time.sleep(0.001)

    def kill(self) -> None:
        """Kill it and no other process of its session."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def kill_worker(self, rng: np.random.Generator) -> bool:
        """Kill one of its worker processes; return False if it has none."""
        found = [pid for pid in _children(self.pid) if "spawn_main" in _command(pid)]
        if not found:
            return False
        with suppress(ProcessLookupError):
            os.kill(int(rng.choice(found)), signal.SIGKILL)
            return True
        return False

    def left(self) -> int:
        """Return 1 if processes of its session outlive it by too long."""
        end = time.monotonic() + GONE
        while time.monotonic() < end:
            try:
                os.killpg(self.pid, 0)
            except ProcessLookupError:
                return 0
            time.sleep(0.01)
        return 1


def _children(pid: int) -> list[int]:
    """Return the processes that a process has started, from any of its threads."""
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):
            found += map(int, file.read_text().split())
    return found


def _command(pid: int) -> str:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


class Harness:
    """A folder with the inputs and the trials."""

    def __init__(self, folder: Path, *, seed: int) -> None:
        """Write the inputs."""
        self.folder, self.seed = folder, seed
        self.inputs = folder / "in"
        self.inputs.mkdir()
        self._checked(self.inputs, lambda: operations.prepare(self.inputs) or 0)

    def measure(self, operation: Operation, kills: int) -> Row:
        """Return the counts of so many kills of an operation."""
        whole = self._empty(f"{operation.name} whole")
        self._checked(whole, self._run(operation, whole))
        self._preload(whole)
        wanted = self._digest(whole)
        shutil.rmtree(whole)
        whole = self._empty(f"{operation.name} whole")  # again: with all modules imported
        begun = time.monotonic()
        self._checked(whole, self._run(operation, whole))
        took, again = time.monotonic() - begun, self._digest(whole)
        files = operations.names(whole)
        unstable = [key for key in wanted if wanted[key] != again.get(key)]
        if unstable:
            raise Broken(f"{operation.name}: two undisturbed runs differ in {unstable}")
        row: Row = {"operation": operation.name, "seconds": round(took, 2), "things": len(wanted)}
        row |= {"kills": 0, "trials": 0, "equal": 0, "untouched": 0, "leftovers": 0}
        row |= {"processes": 0, "failures": []}
        while row["kills"] < kills and row["trials"] < 4 * kills:
            rng = np.random.default_rng([self.seed, _number(operation.name), row["trials"]])
            self._trial(operation, rng, took, wanted=wanted, files=files, row=row)
        shutil.rmtree(whole)
        return row

    def _trial(
        self,
        operation: Operation,
        rng: np.random.Generator,
        took: float,
        *,
        wanted: dict[str, str],
        files: set[str],
        row: Row,
    ) -> None:
        number = row["trials"]
        folder = self._empty(f"{operation.name} {number}")
        run, kills, code, faults = self._run(operation, folder), [], None, []
        for _ in range(int(rng.integers(1, MOST + 1))):
            after = float(rng.uniform(0, took))
            attempt = Try(folder, run)
            code = attempt.wait(after)
            if code is None and operation.worker:
                while code is None and not attempt.kill_worker(rng):
                    code = attempt.wait(0.01)
                kills += [round(after, 3)] if code is None else []
                code = attempt.wait(PATIENCE) if code is None else code
                if code is None:
                    attempt.kill()
                    faults.append("hangs after a worker was killed")
            elif code is None:
                attempt.kill()
                kills.append(round(after, 3))
            row["processes"] += attempt.left()
            if code is not None:
                break
        row["kills"] += len(kills)
        row["trials"] += 1
        row["untouched"] += not kills
        if code is None:
            attempt = Try(folder, run)
            code = attempt.wait(PATIENCE)
            if code is None:
                attempt.kill()
            row["processes"] += attempt.left()
        if code == 2 and "is there already" in folder.with_suffix(".out").read_text():
            code = 0  # it was killed when all was in place, which a rerun says; compared below
        if code != 0:
            printed = folder.with_suffix(".out").read_text().splitlines()
            faults.append(f"exit code {code}: {' | '.join(printed[-3:])}")
        else:
            found = self._digest(folder)
            differ = sorted(k for k in {*wanted, *found} if wanted.get(k) != found.get(k))
            row["equal"] += bool(kills) and not differ
            faults += [f"differ: {', '.join(differ[:6])}"] if differ else []
        left = sorted(operations.names(folder) - files)
        left += sorted(str(f) for f in folder.with_suffix(".tmp").rglob("*"))
        row["leftovers"] += len(left)
        faults += [f"left over: {', '.join(left[:6])}"] if left else []
        if faults:
            row["failures"].append({"trial": number, "kills": kills, "faults": faults})
        elif kills or code == 0:
            shutil.rmtree(folder)

    def _run(self, operation: Operation, folder: Path) -> Callable[[], int]:
        lines = [[w.replace("IN/", f"{self.inputs}/") for w in line] for line in operation.lines]

        def run() -> int:
            from latentplan.cli import main

            return next((code for line in lines if (code := main(line))), 0)

        return run

    def _digest(self, folder: Path) -> dict[str, str]:
        file = folder.with_suffix(".json")
        self._checked(folder, lambda: file.write_text(json.dumps(operations.digest(folder))) * 0)
        return dict(json.loads(file.read_text()))

    def _preload(self, folder: Path) -> None:
        """Import here what a run has imported, so that a fork has it."""
        file = folder.with_suffix(".modules")
        for name in json.loads(file.read_text()) if file.exists() else ():
            with suppress(Exception):
                importlib.import_module(name)

    def _checked(self, folder: Path, run: Callable[[], int]) -> None:
        def listed() -> int:
            code = run()
            folder.with_suffix(".modules").write_text(json.dumps(sorted(sys.modules)))
            return code

        attempt = Try(folder, listed)
        code = attempt.wait(PATIENCE)
        if code != 0:
            raise Broken(f"{folder.name}: exit code {code}: {attempt.printed.read_text()}")

    def _empty(self, name: str) -> Path:
        folder = self.folder / "".join(c if c.isalnum() else "-" for c in name)
        folder.mkdir()
        folder.with_suffix(".tmp").mkdir(exist_ok=True)
        return folder


def _number(name: str) -> int:
    return int.from_bytes(name.encode()[:32], "little")


def merge(file: Path, row: Row, about: dict[str, Any]) -> None:
    """Write a row to a file in place of an earlier one of the operation; others may write too."""
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = json.loads(file.read_text())["operations"] if file.exists() else []
        rows = {each["operation"]: each for each in [*before, row]}
        order = [o.name for o in operations.operations()]
        listed = sorted(rows.values(), key=lambda each: order.index(each["operation"]))
        with replacing(file) as partial:
            partial.write_text(json.dumps({**about, "operations": listed}, indent=1) + "\n")
    Path(lock.name).unlink(missing_ok=True)


def page(results: dict[str, Any]) -> str:
    """Return the results page."""
    rows = results["operations"]
    kills, trials, equal, left = (
        sum(row[key] for row in rows) for key in ("kills", "trials", "equal", "leftovers")
    )
    equal += sum(row.get("untouched", 0) for row in rows)
    left += sum(row["processes"] for row in rows)
    lines = [
        "# Results: kill -9 at random moments",
        "",
        "| operation | undisturbed, s | kills | trials | equal | left over |",
        "|---|---|---|---|---|---|",
        *(
            f"| {r['operation']} | {r['seconds']:.1f} | {r['kills']} | {r['trials']} | "
            f"{r['equal'] + r.get('untouched', 0)} | {r['leftovers'] + r['processes']} |"
            for r in rows
        ),
        f"| all | | {kills} | {trials} | {equal} | {left} |",
        "",
    ]
    method = (
        f"{kills} kills in {trials} trials: {equal} trials end with every bit of an undisturbed "
        f"run, and {left} files or processes are left over. The runs are tiny, so that a kill "
        "falls on every part of a command: its start, each write, and its end."
    )
    how = (
        "A trial runs a command in an empty folder and kills it up to three times, each after a "
        "time drawn within that of an undisturbed run, and each time runs it again as a user "
        "would (`--resume` for a training). Then arrays of stores, weights, optimizer states, "
        "figures, curves, tables, videos and images are compared; times of the clock are not. "
        "Left over are files that an undisturbed run does not leave, in the folder or among "
        "temporary files, and worker processes. Where a worker is killed, the command goes on by "
        "itself. An export that was killed when all was in place is refused as done. "
        "`python benchmarks/kills.py --kills 20 --json benchmarks/kills.json` measures it, "
        f"with seed {results['seed']}, here on {results['machine']['cores']} cores beside other "
        "work. All figures are in `benchmarks/kills.json`."
    )
    text = [textwrap.fill(method, 100), "", "## Method", textwrap.fill(how, 100)]
    return "\n".join([*lines, *text]) + "\n"


def main() -> None:
    """Measure, or write the page of what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", nargs="?", choices=("measure", "page"), default="measure")
    parser.add_argument("--kills", type=int, default=15, help="of each operation")
    parser.add_argument("--only", default="", help="operations that begin so; several with ;")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path, help="folder of the trials that failed")
    options = parser.parse_args()
    if options.what == "page":
        PAGE.write_text(page(json.loads(JSON.read_text())))
        return
    from latentplan.evaluation.provenance import provenance

    chosen = [
        o for o in operations.operations() if o.name.startswith(tuple(options.only.split("; ")))
    ]
    results: dict[str, Any] = {"seed": options.seed, "operations": []}
    broken: list[str] = []  # operations that fail without a kill
    scratch = options.keep or Path(tempfile.mkdtemp(prefix="kills-"))
    scratch.mkdir(exist_ok=True)
    try:
        harness = Harness(scratch, seed=options.seed)
        for operation in chosen:
            begun = time.monotonic()
            try:
                row = harness.measure(operation, max(1, round(options.kills * operation.share)))
            except Broken as e:
                print(e, flush=True)
                broken.append(operation.name)
                continue
            results["operations"].append(row)
            print(f"{time.monotonic() - begun:6.1f} s", json.dumps(row), flush=True)
            if options.json:
                merge(options.json, row, {"seed": options.seed, **provenance()})
    finally:
        if options.keep is None:
            shutil.rmtree(scratch, ignore_errors=True)
    bad = sum(len(row["failures"]) + row["processes"] for row in results["operations"])
    raise SystemExit(1 if bad or broken else 0)


if __name__ == "__main__":
    main()
