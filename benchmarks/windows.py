"""Measure the rate of training windows: `python benchmarks/windows.py DATA.zarr [OUT.json]`."""

from __future__ import annotations

import json
import os
import sys
import time

import numpy as np

from latentplan.data.store import ZarrStore
from latentplan.data.windows import Windows
from latentplan.errors import ConfigError
from latentplan.evaluation.provenance import provenance

SECONDS = 2.0  # duration of each of REPEATS measurements
REPEATS = 5
CASES = ({"length": 9, "batch": 64}, {"length": 2, "batch": 512})


def rates(windows: Windows) -> list[float]:
    """Return windows per second of each measurement."""
    stream = windows.batches()
    next(stream)
    found = []
    for _ in range(REPEATS):
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < SECONDS:
            next(stream)
            count += windows.batch
        found.append(count / (time.perf_counter() - start))
    return found


def main(data: str, out: str = "benchmarks/windows.json") -> None:
    """Measure windows with all and with a third of the images in memory."""
    results = []
    with ZarrStore.open(data) as store:
        rows = int(store.ends[-1])
        size = sum(rows * store.row_bytes(f"observation/{key}") for key in store.spec.observation)
        for case in CASES:
            for share in (1, 1 / 3):
                start = time.perf_counter()
                try:
                    windows = Windows(store, **case, budget=int(share * size))
                except ConfigError:
                    continue  # the store is smaller than a batch
                loading = time.perf_counter() - start
                found = rates(windows)
                results.append(
                    {
                        **case,
                        "share_in_memory": round(share, 2),
                        "loading_s": round(loading, 3),
                        "windows_per_s": round(float(np.mean(found))),
                        "windows_per_s_min_max": [round(min(found)), round(max(found))],
                    }
                )
        report = {
            "data": {
                "episodes": len(store),
                "rows": rows,
                "decoded_bytes": size,
                "bytes_on_disk_per_row": {
                    key: round(store.disk_bytes(f"observation/{key}") / rows, 1)
                    for key in store.spec.observation
                },
            },
            "results": results,
            "load_average": os.getloadavg(),
            **provenance(),
        }
    with open(out, "w") as f:
        json.dump(report, f, indent=1)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
