"""What faults come to: how soon an arm slows down, when it rests, and whether it stays so.

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
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from real import stations  # noqa: E402
from real.harness import FAULTS, LAST, Rig  # noqa: E402
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
        with Rig(stations.of(backend), Path(folder)) as rig:
            for name in names:
                if name in ENDS or name in LAST:
                    continue
                if name == "camera killed" and rig.stations.camera is None:
                    continue
                rows.append(worst([suffer(rig, name) for _ in range(trials)], FAULTS[name].limit))
                merge(rows[-1:])
                print(json.dumps(rows[-1]), flush=True)
            for name, number in ENDS.items():
                if name in names and rig.stations.arm is not None:  # else the arm ends as well
                    renew(rig)
                    rows.append(worst([rig.end_node(name, number)], None))
                    merge(rows[-1:])
                    print(json.dumps(rows[-1]), flush=True)
            for name in LAST:
                if name in names and backend == "ros1":
                    renew(rig)
                    rows.append(worst([suffer(rig, name)], LAST[name].limit))
                    merge(rows[-1:])
                    print(json.dumps(rows[-1]), flush=True)


def renew(rig: Rig) -> None:
    """Start the node and a planner, where the node has ended."""
    if "node" not in rig.processes:
        rig.start("node", rig.node_command(rig.port))
        rig.ready("node")
        rig.start_planner()


def suffer(rig: Rig, name: str) -> Row:
    """Return a trial; another one where the machine stalled before there was any fault."""
    for attempt in range(4):
        try:
            return rig.suffer(name)
        except AssertionError as e:
            stalled = "before it" in str(e) or "did not move" in str(e)
            if not stalled or attempt == 3:
                raise
            print(f"again: {e}", file=sys.stderr, flush=True)
    raise AssertionError(name)


def worst(trials: list[Row], limit: float | None) -> dict[str, Any]:
    """Return the worst of trials, with what is allowed."""

    def most(name: str) -> float | None:
        values = [getattr(row, name) for row in trials]
        return None if None in values else float(max(values))

    reaction, rest = most("reaction_ms"), most("rest_ms")
    after = None if reaction is None or rest is None else round(rest - reaction, 1)
    median = sorted(row.reaction_ms or 0 for row in trials)[len(trials) // 2]
    row = {
        "backend": trials[0].backend,
        "fault": trials[0].fault,
        "reaction_ms": reaction,
        "reaction_median_ms": None if reaction is None else median,
        "limit_ms": limit,
        "rest_ms": rest,
        "held": all(row.held for row in trials),
        "velocity": most("velocity"),
        "acceleration": most("acceleration"),
        "non_finite": sum(row.non_finite for row in trials),
        "trials": len(trials),
        "reason": trials[0].reason,
    }
    in_time = limit is None or (reaction is not None and reaction <= limit)
    rests = after is None or after <= REST
    kept = max(row["velocity"] or 0, row["acceleration"] or 0) <= MOST and not row["non_finite"]
    return row | {"ok": bool(in_time and rests and kept)}


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
    backends = ["sim", "ros2", "ros1", "rosbridge"]
    rows = sorted(
        kept.values(), key=lambda r: (backends.index(r["backend"]), order.index(r["fault"]))
    )
    with replacing(JSON) as partial:
        partial.write_text(json.dumps({"rows": rows} | provenance(), indent=1) + "\n")


def page() -> str:
    """Return the page that shows what was measured."""
    known = json.loads(JSON.read_text())
    lines = [
        "# What faults come to",
        "",
        "Arm, camera, node, planner and recorder are processes of their own. The first joint of a",
        "simulated Panda turns at 0.5 rad/s when a fault is injected, at a random moment; the",
        "planner goes on sending throughout. Times are the worst of the trials, from the fault to",
        "the first recorded command that slows down (median in brackets) and until no joint moves",
        "faster than 0.005 rad/s. *Held*: the fault is over, the planner sends, and the arm stays",
        "at rest until somebody resets it. Speed and acceleration are the largest of all recorded",
        "commands, as a share of their limits. A tick is 20 ms. Measured on",
        f"{known['machine']['cores']} cores by `python benchmarks/faults.py BACKEND`; all figures",
        "are in [faults.json](faults.json).",
        "",
        "| backend | fault | stops after, ms | allowed | rests, ms | held | speed | acceleration |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in known["rows"]:
        reaction = "goes on" if row["rest_ms"] is None else "-"
        if row["reaction_ms"] is not None:
            reaction = f"{row['reaction_ms']:.0f} ({row['reaction_median_ms']:.0f})"
        rest = "" if row["rest_ms"] is None else f"{row['rest_ms']:.0f}"
        held = "" if row["rest_ms"] is None else ("yes" if row["held"] else "no")
        allowed = "" if row["limit_ms"] is None else f"{row['limit_ms']:.0f}"
        allowed += "" if row["ok"] else " **missed**"
        shares = f"{row['velocity']:.3f} | {row['acceleration']:.3f}"
        cells = [row["backend"], row["fault"], reaction, allowed, rest, held, shares]
        lines.append(f"| {' | '.join(cells)} |")
    count = sum(row["non_finite"] for row in known["rows"])
    lines += ["", f"Commands that were not finite: {count}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("backend", choices=["sim", "ros2", "ros1", "rosbridge", "page"])
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
