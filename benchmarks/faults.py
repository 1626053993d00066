"""Faults of the robot stack: how soon an arm slows down, rests, and whether it stays at rest.

    python benchmarks/faults.py sim                   # each backend by the python that has it
    .venv-ros2/bin/python benchmarks/faults.py ros2 --trials 5
    .venv-ros1/bin/python benchmarks/faults.py ros1 --faults "camera hangs,emergency stop"
    python benchmarks/faults.py page                  # docs/results/faults.md of what was measured

Arm, camera, node, planner and recorder are processes of their own (`tests/real/harness.py`); a
fault is injected at a random moment of the arm's turning at 0.5 rad/s, and all is judged by the
recorded topics. What was measured before is kept, a row a backend and a fault. For ROS, run it in a
network namespace: `unshare -n sh -c 'ip link set lo up; ...'`.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import signal
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from real import setups  # noqa: E402
from real.faults import BACKENDS, FAULTS, LAST, trial  # noqa: E402
from real.harness import Rig  # noqa: E402
from real.record import Row  # noqa: E402

from latentplan.evaluation.provenance import provenance  # noqa: E402
from latentplan.files import replacing  # noqa: E402

JSON, PAGE = (ROOT / "docs" / "results" / f"faults.{suffix}" for suffix in ("json", "md"))
ENDS = {"node told to end": signal.SIGTERM, "node killed": signal.SIGKILL}
REST = 600.0  # ms from the reaction until it rests, at most
MOST = 1.01  # of a limit


def measure(backend: str, names: list[str], trials: int) -> None:
    """Measure faults, and write a row a fault: the worst of its trials."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        with Rig(setups.of(backend), Path(folder)) as rig:
            for name in names:
                if name in ENDS or name in LAST or backend not in FAULTS[name].backends:
                    continue
                rows.append(worst([attempt(rig, name) for _ in range(trials)], FAULTS[name].limit))
                merge(rows[-1:])
                print(json.dumps(rows[-1]), flush=True)
            for name, number in ENDS.items():
                if name in names and rig.setup.arm is not None:  # else the arm ends as well
                    renew(rig)
                    rows.append(worst([rig.end_node(name, number)], None))
                    merge(rows[-1:])
                    print(json.dumps(rows[-1]), flush=True)
            for name in LAST:
                if name in names and backend in LAST[name].backends:
                    renew(rig)
                    rows.append(worst([attempt(rig, name)], LAST[name].limit))
                    merge(rows[-1:])
                    print(json.dumps(rows[-1]), flush=True)


def renew(rig: Rig) -> None:
    """Start the node and a planner, where the node has ended."""
    if "node" not in rig.processes:
        rig.start("node", rig.node_command(rig.port))
        rig.ready("node")
        rig.start_planner()


def attempt(rig: Rig, name: str) -> Row:
    """Return the outcome of a trial; of another one if the machine stalled before the fault."""
    attempts = 4
    while True:
        attempts -= 1
        try:
            return trial(rig, name)
        except AssertionError as e:
            stalled = "before it" in str(e) or "did not move" in str(e)
            if not stalled or attempts == 0:
                raise
            print(f"again: {e}", file=sys.stderr, flush=True)


def worst(trials: list[Row], limit: float | None) -> dict[str, Any]:
    """Return the worst of trials, with what is allowed."""

    def most(name: str) -> float | None:
        values = [getattr(row, name) for row in trials]
        return None if None in values else float(max(values))

    reaction, rest = most("reaction_ms"), most("rest_ms")
    after = None if reaction is None or rest is None else round(rest - reaction, 1)
    row = {
        "backend": trials[0].backend,
        "fault": trials[0].fault,
        "reaction_ms": reaction,
        "reaction_median_ms": None
        if reaction is None
        else sorted(r.reaction_ms or 0 for r in trials)[len(trials) // 2],
        "limit_ms": limit,
        "rest_ms": rest,
        "held": all(row.held for row in trials),
        "velocity": most("velocity"),
        "acceleration": most("acceleration"),
        "non_finite": sum(row.non_finite for row in trials),
        "trials": len(trials),
        "reason": trials[0].reason,
    }
    if _is_harmless(row):
        in_time = all(not trial.reason for trial in trials)
    else:
        in_time = limit is None or (reaction is not None and reaction <= limit)
    rests = after is None or after <= REST
    kept = max(row["velocity"] or 0, row["acceleration"] or 0) <= MOST and not row["non_finite"]
    return row | {"ok": bool(in_time and rests and kept)}


def _is_harmless(row: dict[str, Any]) -> bool:
    """Return whether the arm should continue after a fault."""
    return row["limit_ms"] is None and row["fault"] not in ENDS


def merge(rows: list[dict[str, Any]]) -> None:
    """Write rows in place of those of the same backend and fault, one process at a time."""
    with open(Path(tempfile.gettempdir()) / "latentplan-faults.lock", "wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        _merge(rows)


def _merge(rows: list[dict[str, Any]]) -> None:
    known: dict[str, Any] = json.loads(JSON.read_text()) if JSON.exists() else {"rows": []}
    kept = {(row["backend"], row["fault"]): row for row in known["rows"]}
    kept |= {(row["backend"], row["fault"]): row for row in rows}
    order = [*FAULTS, *LAST, *ENDS]
    rows = sorted(
        kept.values(), key=lambda r: (BACKENDS.index(r["backend"]), order.index(r["fault"]))
    )
    with replacing(JSON) as partial:
        partial.write_text(json.dumps({"rows": rows} | provenance(), indent=1) + "\n")


def page() -> str:
    """Return the page of what was measured: the table and the finding, then the method."""
    known = json.loads(JSON.read_text())
    rows = known["rows"]
    backends = [name for name in BACKENDS if any(row["backend"] == name for row in rows)]
    lines = [
        "# Results: faults of the robot stack",
        "",
        "| fault | allowed, ms | " + " | ".join(backends) + " |",
        "|---" * (2 + len(backends)) + "|",
    ]
    for fault in dict.fromkeys(row["fault"] for row in rows):
        of = {row["backend"]: row for row in rows if row["fault"] == fault}
        limits = sorted({row["limit_ms"] for row in of.values()} - {None})
        allowed = " to ".join(f"{limit:.0f}" for limit in dict.fromkeys(limits[:1] + limits[-1:]))
        cells = [_cell(of[name]) if name in of else "" for name in backends]
        lines.append(f"| {fault} | {allowed} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_finding(rows), "", *_method(known)]) + "\n"


def _cell(row: dict[str, Any]) -> str:
    """Return the reaction time and the time to rest of a fault behind a backend, in ms."""
    if row["rest_ms"] is None:
        return "continues"
    if _is_harmless(row):
        return "stops **missed**"
    reaction = "-" if row["reaction_ms"] is None else f"{row['reaction_ms']:.0f}"
    missed = "" if row["ok"] else " **missed**"
    return f"{reaction} / {row['rest_ms']:.0f}{missed}"


def _finding(rows: list[dict[str, Any]]) -> list[str]:
    stops = [row for row in rows if not _is_harmless(row)]
    missed = sum(not row["ok"] for row in stops)
    needless = sum(not row["ok"] for row in rows) - missed
    in_time = "within the allowed time" if not missed else f"late in {missed} of them"
    goes_on = "continues" if not needless else f"continues but in {needless} of them"
    held = "in every one" if all(row["held"] for row in stops) else "not in every one"
    velocity = max(row["velocity"] for row in rows)
    acceleration = max(row["acceleration"] for row in rows)
    broken = sum(row["non_finite"] for row in rows)
    text = (
        "Cells are the reaction time, until the first command that slows the arm down, and the "
        f"time until the arm is at rest, in ms. The arm stops after {len(stops)} of {len(rows)} "
        f"faults, {in_time}, and {held} stays at rest until somebody resets it; the other "
        f"{len(rows) - len(stops)} are harmless, and it {goes_on}. No command exceeds "
        f"{velocity:.3f} of a velocity limit or {acceleration:.3f} of an acceleration limit, and "
        f"{broken} commands are not finite."
    )
    return textwrap.wrap(text, 100)


def _method(known: dict[str, Any]) -> list[str]:
    text = (
        "Arm, camera, node, planner and recorder are separate processes. The first joint of a "
        "simulated Panda turns at 0.5 rad/s when a fault is injected at a random moment; the "
        "planner keeps sending. Times are the worst of the trials, measured in the recorded "
        "topics; the arm is at rest when no joint moves faster than 0.005 rad/s. A tick is 20 ms. "
        f"There are {_trials(known['rows'])} trials of a fault. "
        f"`python benchmarks/faults.py BACKEND` measures a backend, here on "
        f"{known['machine']['cores']} cores. All figures, with medians and the reason of each "
        "stop, are in [faults.json](faults.json). [Safety](../safety.md) describes the checks."
    )
    return ["## Method", *textwrap.wrap(text, 100)]


def _trials(rows: list[dict[str, Any]]) -> str:
    counts = sorted({row["trials"] for row in rows if row["fault"] not in (*ENDS, *LAST)})
    return f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("backend", choices=[*BACKENDS, "page"])
    every = ",".join([*FAULTS, *ENDS, *LAST])
    parser.add_argument("--faults", default=every, help="names with commas")
    parser.add_argument("--trials", type=int, default=3)
    given = parser.parse_args()
    if given.backend != "page":
        measure(given.backend, given.faults.split(","), given.trials)
    with replacing(PAGE) as partial:
        partial.write_text(page())


if __name__ == "__main__":
    main()
