"""Measure speed, memory, size and exactness of `latentplan import calvin`, and window rates.

    python benchmarks/imports.py SAMPLE [--frames 4000] [--json benchmarks/imports.json]

SAMPLE is a CALVIN data set, for example a small one. Its frames (images of 200 x 200 and 84 x 84
pixels, and all numbers) are repeated forwards and backwards until there are enough, one file each.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from latentplan.data.store import ZarrStore
from latentplan.data.windows import Windows
from latentplan.evaluation.provenance import provenance
from latentplan.files import replacing

NUMBERS = ("actions", "rel_actions", "robot_obs", "scene_obs")
CAMERAS = ("rgb_static", "rgb_gripper")
SECONDS = 5.0  # duration of each measurement of windows
LENGTH, BATCH, SIZE = 16, 64, 64  # frames per window, windows per batch, side of an image
PROGRAM = "import sys; from latentplan.cli import main; sys.exit(main())"


def main() -> None:
    """Import a part and the whole of a set, compare, read windows, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sample", type=Path)
    parser.add_argument("--frames", type=int, default=4000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        root, npz_bytes = tiled(arguments.sample, where / "set", arguments.frames)
        imports = []
        for frames, workers in (
            (arguments.frames // 4, 2),
            (arguments.frames, 2),
            (arguments.frames, 0),
        ):
            imports.append(imported(root, where / "out.zarr", frames=frames, workers=workers))
            if frames == arguments.frames:
                size = sum(f.stat().st_size for f in (where / "out.zarr").rglob("*") if f.is_file())
                imports[-1] |= {
                    "store_of_npz_bytes": round(size / npz_bytes, 3),
                    "values_that_differ": differing(root, where / "out.zarr"),
                }
            print(json.dumps(imports[-1]))
        options = ["--image-size", str(SIZE), "--keys", ",".join(CAMERAS)]
        small = where / "small.zarr"
        imported(root, small, frames=arguments.frames, workers=2, options=options)
        windows = window_rates(root, small)
        print(json.dumps(windows, indent=1))
    found = {
        "frames": arguments.frames,
        "npz_bytes_per_frame": round(npz_bytes / arguments.frames),
        "imports": imports,
        "steady_frames_per_cpu_s": round(_steady(*imports[:2]), 1),
        "windows": {"length": LENGTH, "batch": BATCH, "pixels": SIZE, "per_s": windows},
        "load_average": os.getloadavg(),
        **provenance(),
    }
    if arguments.json:
        with replacing(arguments.json) as partial:
            partial.write_text(json.dumps(found, indent=1) + "\n")


def tiled(sample: Path, root: Path, frames: int) -> tuple[Path, int]:
    """Write a recording of the sample's frames forwards and backwards; return its root and size."""
    folder = root / "training"
    folder.mkdir(parents=True)
    files = sorted((sample / "training").glob("episode_*.npz"))
    files += files[-2:0:-1]
    packed = folder / "packed.npz"
    contents = []
    for file in files:
        with np.load(file) as arrays:
            np.savez_compressed(packed, **{key: arrays[key] for key in NUMBERS + CAMERAS})
        contents.append(packed.read_bytes())
    packed.unlink()
    for number in range(frames):
        (folder / f"episode_{number:07d}.npz").write_bytes(contents[number % len(contents)])
    np.save(folder / "ep_start_end_ids.npy", np.array([[0, frames - 1]]))
    return root, sum(len(contents[number % len(contents)]) for number in range(frames))


def imported(
    root: Path, out: Path, *, frames: int, workers: int, options: list[str] | None = None
) -> dict[str, Any]:
    """Import the first frames in a new process, and return time and memory."""
    shutil.rmtree(out, ignore_errors=True)
    np.save(root / "training/ep_start_end_ids.npy", np.array([[0, frames - 1]]))
    command = [sys.executable, "-c", PROGRAM, "import", "calvin", str(root), "--out", str(out)]
    command += ["--workers", str(workers), *(options or [])]
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    peak, done = [0.0], threading.Event()
    watching = threading.Thread(target=_watch, args=(process.pid, peak, done))
    watching.start()
    assert process.stdout is not None
    printed = process.stdout.read().decode()
    _, status, used = os.wait4(process.pid, 0)  # of it and of its workers
    seconds = time.monotonic() - started
    done.set()
    watching.join()
    if status:
        sys.exit(f"{' '.join(command)}: failed")
    cpu = used.ru_utime + used.ru_stime
    return {
        "frames": frames,
        "workers": workers,
        "frames_per_s_of_the_command": round(frames / seconds, 1),
        "transitions_per_s_printed": float(printed.split(" at ")[1].split("/s")[0]),
        "frames_per_cpu_s": round(frames / cpu, 1),
        "peak_mb_of_all_processes": round(peak[0] / 1e6),
        "load_average": round(os.getloadavg()[0], 1),
    }


def _steady(part: dict[str, Any], whole: dict[str, Any]) -> float:
    """Return frames per second of CPU time, without the start-up time."""
    return float(
        (whole["frames"] - part["frames"])
        / (whole["frames"] / whole["frames_per_cpu_s"] - part["frames"] / part["frames_per_cpu_s"])
    )


def _watch(pid: int, peak: list[float], done: threading.Event) -> None:
    """Record the peak of the private memory of a process and its children."""
    while not done.wait(0.05):
        total = 0
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if pid in (parent, int(folder.name)):
                    pages = (folder / "statm").read_text().split()
                    total += (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGE_SIZE")
            except (OSError, ValueError):
                continue  # the process has ended
        peak[0] = max(peak[0], total)


def differing(root: Path, out: Path) -> int:
    """Return the number of values that differ between the store and the files."""
    wrong = 0
    with ZarrStore.open(out) as store:
        for index in range(len(store)):
            episode = store.episode(index)
            first = int(episode.info["frame"])
            for row in range(len(episode) + 1):
                with np.load(root / f"training/episode_{first + row:07d}.npz") as arrays:
                    for key in NUMBERS + CAMERAS:
                        found = episode.observations[key][row]
                        wrong += int((found != arrays[key]).sum())
                    if row < len(episode):
                        action = arrays["rel_actions"].astype(np.float32)
                        wrong += int((episode.actions[row] != action).sum())
    return wrong


def window_rates(root: Path, small: Path) -> dict[str, float]:
    """Return windows per second from the store and from the files, with images of both cameras.

    Training keeps as much of the store in memory as fits; without memory each window is decoded.
    """
    found, rng = {}, np.random.default_rng(0)
    with ZarrStore.open(small) as store:
        frames = int(store.ends[-1]) - len(store) + 1
        windows = Windows(store, length=LENGTH, batch=BATCH, keys=CAMERAS, test_fraction=0.0)
        found["store, in memory"] = _rate(windows.batches().__next__)
        first = np.concatenate([[0], store.ends[:-1]])
        starts = np.concatenate(
            [np.arange(a, b - LENGTH + 1) for a, b in zip(first, store.ends, strict=True)]
        )

        def read() -> dict[str, np.ndarray]:
            chosen = rng.choice(starts, BATCH)
            return {
                key: np.stack(
                    [store.rows(f"observation/{key}", row, row + LENGTH) for row in chosen]
                )
                for key in CAMERAS
            }

        found["store, nothing in memory"] = _rate(read)
    files = [root / f"training/episode_{number:07d}.npz" for number in range(frames)]

    def batch(resize: bool) -> dict[str, np.ndarray]:
        images: dict[str, list[np.ndarray]] = {key: [] for key in CAMERAS}
        for start in rng.integers(0, frames - LENGTH + 1, BATCH):
            for file in files[start : start + LENGTH]:
                with np.load(file) as arrays:
                    for key in CAMERAS:
                        image = arrays[key]
                        if resize:
                            image = np.asarray(Image.fromarray(image).resize((SIZE, SIZE), 2))
                        images[key].append(image)
        return {key: np.stack(each) for key, each in images.items()}

    found["npz, resized"] = _rate(lambda: batch(True))
    found["npz, as they are"] = _rate(lambda: batch(False))
    return found


def _rate(one: Any) -> float:
    """Return windows per second of CPU time, which does not depend on other load."""
    one()
    start, count = time.process_time(), 0
    while time.process_time() - start < SECONDS:
        one()
        count += BATCH
    return round(count / (time.process_time() - start), 1)


if __name__ == "__main__":
    main()
