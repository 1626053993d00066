"""Measure speed, memory and exactness of `latentplan import rlbench`, on synthetic demos.

    python benchmarks/imports_rlbench.py [--demos 40] [--json benchmarks/imports_rlbench.json]

A demo has 100 steps of five cameras at 128 x 128 pixels, with rgb, depth and masks. Colours carry
noise, so that an rgb image has 23 kB. Most demos are links to the first ones, so that files are in
the page cache, as on a machine with much memory. Seconds include the start of the command; on a
machine with other load (`load_average` above 2), use the CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from latentplan.data.store import ZarrStore
from latentplan.evaluation.provenance import provenance
from latentplan.files import replacing

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import rlbench_writer as writer  # noqa: E402

STEPS, SIZE, DRAWN, WORKERS = 100, 128, 2, 2
KINDS = {"rgb": "[rgb]", "rgb, depth, mask": "[rgb,depth,mask]"}


def main() -> None:
    """Write demos, import them, compare, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demos", type=int, default=40)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = write(Path(folder) / "demos", arguments.demos)
        results = {
            kind: [measure(root, n, kinds) for n in (max(2, arguments.demos // 4), None)]
            for kind, kinds in KINDS.items()
        }
    found = {
        **provenance(),
        "demos": arguments.demos,
        "steps": STEPS,
        "cameras": len(writer.EYES),
        "pixels": SIZE,
        "workers": WORKERS,
        "imports": results,
    }
    print(json.dumps(results, indent=2))
    if arguments.json:
        with replacing(arguments.json) as partial:
            partial.write_text(json.dumps(found, indent=2) + "\n")


def write(root: Path, demos: int) -> Path:
    """Write the first demos and links to them, and return their root."""
    episodes = root / "reach_target" / "variation0" / "episodes"
    for i in range(demos):
        if i < DRAWN:
            writer.write_demo(episodes / f"episode{i}", length=STEPS, size=SIZE, seed=i)
        else:
            first = episodes / f"episode{i % DRAWN}"
            shutil.copytree(first, episodes / f"episode{i}", copy_function=os.link)
    return root


def measure(root: Path, demos: int | None, kinds: str) -> dict[str, object]:
    """Import demos, and return seconds, steps per second, peak memory, and differing values."""
    out = root.parent / "out.zarr"
    shutil.rmtree(out, ignore_errors=True)
    program = "import sys; from latentplan.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "import", "rlbench", str(root), "--out", str(out)]
    command += ["--workers", str(WORKERS), f"images={kinds}"]
    command += [] if demos is None else ["--episodes", str(demos)]
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)  # of it and of its workers
    seconds = time.monotonic() - began
    if status:
        sys.exit(f"{' '.join(command)}: failed")
    with ZarrStore.open(out) as store:
        rows = int(store.ends[-1])
        files = sum(
            file.stat().st_size
            for episode in range(len(store))
            for kind in kinds.strip("[]").split(",")
            for file in (root / "reach_target/variation0/episodes" / f"episode{episode}").glob(
                f"*_{kind}/*.png"
            )
        )
        return {
            "episodes": len(store),
            "steps": rows,
            "seconds": round(seconds, 2),
            "steps_per_second": round(rows / seconds, 1),
            "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
            "steps_per_cpu_second": round(rows / (used.ru_utime + used.ru_stime), 1),
            "load_average": round(os.getloadavg()[0], 1),
            "largest_process_mb": round(used.ru_maxrss / 1024),
            "store_mb": round(store.disk_bytes() / 1e6, 1),
            "png_mb": round(files / 1e6, 1),
            "values_that_differ": differing(store, root, kinds),
        }


def differing(store: ZarrStore, root: Path, kinds: str) -> int:
    """Return the number of values of the last demo that differ between the store and its files."""
    episode = store.episode(len(store) - 1)
    folder = root / "reach_target/variation0/episodes" / f"episode{len(store) - 1}"
    with writer.classes():  # our own file
        seen = pickle.loads((folder / "low_dim_obs.pkl").read_bytes())._observations
    wrong = 0
    for name in ("joint_positions", "joint_forces", "gripper_pose", "task_low_dim_state"):
        values = np.stack([getattr(o, name) for o in seen])
        wrong += int((values != episode.observations[name]).sum())
    for camera, (_, far) in writer.EYES.items():
        for kind in kinds.strip("[]").split(","):
            for step, found in enumerate(episode.observations[f"{camera}_{kind}"]):
                file = folder / f"{camera}_{kind}" / f"{step}.png"
                red, green, blue = np.moveaxis(np.asarray(Image.open(file), np.int64), -1, 0)
                part = (red * 65536 + green * 256 + blue) / (2**24 - 1)
                wanted = {
                    "rgb": np.stack([red, green, blue], -1),
                    "depth": (writer.NEAR + part * (far - writer.NEAR)).astype(np.float32),
                    "mask": red + green * 256 + blue * 65536,
                }[kind]
                wrong += int((found != wanted).sum())
    return wrong


if __name__ == "__main__":
    main()
