"""Mutated inputs for every entry point: counts of what is read, refused, and found wrong.

    python benchmarks/fuzz.py --inputs 6000 --json benchmarks/fuzz.json   # of each entry point
    python benchmarks/fuzz.py --seconds 30 --only "stores; bags"

Each entry point (`tests/entry_points.py`) has a process of its own. Input i depends on the
seed and i alone. An exception other than a LatentplanError, or more than 10 s, is found wrong.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from entry_points import ENTRIES, search  # noqa: E402

from latentplan.evaluation.provenance import provenance  # noqa: E402
from latentplan.files import replacing  # noqa: E402


def searched(task: tuple[str, int, int, float]) -> dict[str, Any]:
    """Return the counts of one entry point."""
    name, seed, inputs, seconds = task
    with tempfile.TemporaryDirectory() as folder:
        return search(name, Path(folder) / "sample", seed=seed, inputs=inputs, seconds=seconds)


def main() -> None:
    """Search, and write the counts."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=10**9, help="of each entry point, at most")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each entry point, at most")
    parser.add_argument("--only", default="", help="entry points that begin so; several with ;")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    chosen = [name for name in ENTRIES if name.startswith(tuple(options.only.split("; ")))]
    tasks = [(name, options.seed, options.inputs, options.seconds) for name in chosen]
    rows = []
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for row in pool.imap(searched, tasks, chunksize=1):
            rows.append(row)
            print(json.dumps(row), flush=True)
            if options.json:
                found = {"seed": options.seed, **provenance(), "entry_points": rows}
                with replacing(options.json) as partial:
                    partial.write_text(json.dumps(found, indent=1) + "\n")
    raise SystemExit(1 if any(row["found"] for row in rows) else 0)


if __name__ == "__main__":
    main()
