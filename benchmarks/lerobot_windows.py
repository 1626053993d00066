"""Compare the rates of training windows from a store and from LeRobot's loader, on the same data.

    python benchmarks/lerobot_windows.py DATA.zarr [OUT.json]    # with lerobot >= 0.4 installed

Both return T consecutive images of every camera and the actions between them, in random batches, as
float32 in [0, 1] with the channel first; the store also as uint8, as in training. The store is
read with all and with three quarters of the images in memory. LeRobot reads the export with videos
(its default) and with PNG, in this process and with worker processes.

Measurements are interleaved, so that other load affects all loaders alike. Windows per second of
CPU time cover all threads of this process; they are omitted for loaders with workers.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentplan.data.export import lerobot as export
from latentplan.data.store import ZarrStore
from latentplan.data.windows import Windows
from latentplan.evaluation.provenance import provenance

LENGTH, BATCH = 16, 64
SECONDS, REPEATS = 6.0, 3  # duration and number of measurements per loader
WORKERS = (0, 2)  # workers of LeRobot's loader
SHARES = (1.0, 0.75)  # share of the images that the store keeps in memory


def images(store: ZarrStore) -> list[str]:
    """Return the keys of the observations that are colour images."""
    return [key for key, spec in store.spec.observation.items() if export.is_image(spec)]


def of_store(store: ZarrStore, share: float, *, floats: bool = True) -> Iterator[Any]:
    """Yield batches of windows with a share of the images in memory."""
    rows, keys = int(store.ends[-1]), images(store)
    size = rows * sum(store.row_bytes(f"observation/{key}") for key in keys)
    budget = int(share * size) + rows * store.row_bytes("action")
    windows = Windows(
        store, length=LENGTH, batch=BATCH, keys=keys, test_fraction=0, budget=budget
    )
    for batch in windows.batches():
        if not floats:
            yield batch
            continue
        yield {k: v.permute(0, 1, 4, 2, 3).float().div_(255) for k, v in batch.observations.items()}


def of_lerobot(root: Path, *, fps: int, workers: int) -> Iterator[Any]:
    """Yield batches of LeRobot's windows, which it pads at the ends of episodes."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset, LeRobotDatasetMetadata

    about = LeRobotDatasetMetadata("local/benchmark", root=root)
    frames = [t / fps for t in range(LENGTH)]
    times = {key: frames for key in about.camera_keys} | {"action": frames[:-1]}
    data = LeRobotDataset("local/benchmark", root=root, delta_timestamps=times)
    loader = torch.utils.data.DataLoader(
        data,
        batch_size=BATCH,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        multiprocessing_context="spawn" if workers else None,  # a fork would share open decoders
    )
    while True:
        yield from loader


class Loader:
    """An endless stream of batches, and its measured rates."""

    def __init__(self, name: str, stream: Iterator[Any], *, workers: int = 0) -> None:
        """Read the first batch."""
        self.name, self._stream, self._workers = name, stream, workers
        self._of_clock: list[float] = []
        self._of_cpu: list[float] = []
        next(stream)

    def measure(self) -> None:
        """Count windows for SECONDS."""
        for _ in range(2 * self._workers + 1):  # drop batches that workers have prefetched
            next(self._stream)
        start, cpu, count = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - start < SECONDS:
            next(self._stream)
            count += BATCH
        self._of_clock.append(count / (time.perf_counter() - start))
        self._of_cpu.append(count / (time.process_time() - cpu))

    def found(self) -> dict[str, Any]:
        """Return the mean and the range of windows per second."""
        values = {"windows_per_s": self._of_clock}
        if not self._workers:
            values["windows_per_cpu_s"] = self._of_cpu
        found: dict[str, Any] = {"loader": self.name}
        for name, rates in values.items():
            found[name] = round(float(np.mean(rates)), 1)
            found[f"{name}_min_max"] = [round(min(rates), 1), round(max(rates), 1)]
        return found


def main(data: str, out: str = "benchmarks/lerobot.json") -> None:
    """Measure the store and both exports of it, and write the figures."""
    with ZarrStore.open(data) as store, tempfile.TemporaryDirectory() as folder:
        fps = export.whole_fps(store.spec)
        loaders = [Loader("latentplan, uint8", of_store(store, 1, floats=False))]
        for share in SHARES:
            name = f"latentplan, {round(100 * share)} % of the images in memory"
            loaders.append(Loader(name, of_store(store, share)))
        for kind, config in {"video": export.Config(), "PNG": export.Config(video=False)}.items():
            root = Path(folder) / kind
            with export.writing(root, store.spec, fps=fps, config=config) as writer:
                for index in range(len(store)):
                    writer.append(store.episode(index))
            for workers in WORKERS:
                name, stream = f"LeRobot, {kind}", of_lerobot(root, fps=fps, workers=workers)
                loaders.append(Loader(f"{name}, {workers} workers", stream, workers=workers))
        for _ in range(REPEATS):
            for loader in loaders:
                loader.measure()
        results = [loader.found() for loader in loaders]
        sizes = {
            "store": store.disk_bytes(),
            **{kind: _bytes(Path(folder) / kind) for kind in ("video", "PNG")},
        }
        report = {
            "data": {
                "env": store.spec.env,
                "episodes": len(store),
                "rows": int(store.ends[-1]),
                "images": {k: store.spec.observation[k].shape for k in images(store)},
                "bytes_on_disk": sizes,
            },
            "window": {"length": LENGTH, "batch": BATCH},
            "results": results,
            "lerobot": version("lerobot"),
            "load_average": os.getloadavg(),
            **provenance(),
        }
    Path(out).write_text(json.dumps(report, indent=1))
    print(json.dumps(results, indent=1))


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


if __name__ == "__main__":
    main(*sys.argv[1:])
