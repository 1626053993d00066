"""Readers under attack, in a process of its own with bounds on memory and time.

`python hostile.py KIND COUNT` reads every bomb of a kind, then COUNT mutations of good files, and
`python hostile.py KIND COUNT` reads all bombs of a kind, then COUNT mutations of good files, and
more than 2 GB or computes for more than 10 s.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

MEMORY = 2 << 30  # bytes, beside what Python and its libraries have mapped
SECONDS = 10  # of the processor, for one file


def attack(kind: str, *, count: int = 0, budget: str = "") -> dict[str, str]:
    """Return the outcome of each file: "read", or the name of the error; never a traceback."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, __file__, kind, str(count)],
        env=environment | ({"LATENTPLAN_BUDGET": budget} if budget else {}),
        capture_output=True,
        text=True,
        timeout=500,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"after {lines[-1:]}: {done.returncode} {done.stderr[-2000:]}"
    return dict(json.loads(line) for line in lines)


def _pickle(path: Path) -> Any:
    from latentplan.data.unpickling import read_pickle

    return read_pickle(path, known=("rlbench.demo.Demo", "rlbench.backend.observation.Observation"))


def _npy(path: Path) -> Any:
    from latentplan.data.unpickling import read_npy

    return read_npy(path)


def _npz(path: Path) -> Any:
    from latentplan.data import npz

    return npz.read(path, npz.names(path))


def _image(path: Path) -> Any:
    import numpy as np

    from latentplan.data import image_files
    from latentplan.errors import SourceError

    with image_files.opened(path, where=str(path), error=SourceError) as image:
        return np.asarray(image.convert("RGB"))


def _json(path: Path) -> Any:
    from latentplan import foreign
    from latentplan.errors import SourceError

    return foreign.read_json(path, error=SourceError)


def _yaml(path: Path) -> Any:
    from latentplan import config

    return config.read_yaml(path)


def _urdf(path: Path) -> Any:
    from latentplan.robots import description

    joints = ", ".join(f"to_l{i}: {{acceleration: 5, jerk: 100}}" for i in range(1, 5))
    path.with_suffix(".yaml").write_text(f"joints: {{{joints}}}")
    return description.load(str(path))


def _camera(path: Path) -> Any:
    from latentplan.robots import camera

    return camera.load(str(path))


def _good_yaml() -> list[bytes]:
    return [b"a: 1e-3\nb: {c: [1, 2.5, x], d: true}\ne: null\n"]


def _good_cameras() -> list[bytes]:
    return [CAMERA]


CAMERA = b"""name: front
width: 64
height: 48
fx: 60.0
fy: 60.0
cx: 32.0
cy: 24.0
position: [0.0, 0.0, 1.0]
rotation: [1.0, 0.0, 0.0, 0.0]
"""


def _good_urdfs() -> list[bytes]:
    import bombs

    return [bombs.urdf_chain(5).encode()]


def _good_pickles() -> list[bytes]:
    import pickle

    import numpy as np

    value = {"a": [1, "x", None], "b": (np.arange(5), np.float32(2)), "c": {"d": 1.5}}
    return [pickle.dumps(value, protocol) for protocol in (2, 4)]


def _good_arrays() -> list[bytes]:
    import io

    import numpy as np

    found = []
    for value in (np.arange(6.0).reshape(2, 3), np.array({"a": [1, np.arange(3)]}, object)):
        file = io.BytesIO()
        np.save(file, value, allow_pickle=True)
        found.append(file.getvalue())
    return found


def _good_archives() -> list[bytes]:
    import io

    import numpy as np

    found = []
    for save in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        save(file, x=np.arange(60), y=np.zeros((3, 4, 5), np.uint8))
        found.append(file.getvalue())
    return found


def _good_images() -> list[bytes]:
    import io

    import numpy as np
    from PIL import Image

    found = []
    for kind in ("PNG", "JPEG", "BMP"):
        file = io.BytesIO()
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)).save(
            file, kind
        )
        found.append(file.getvalue())
    return found


def _good_json() -> list[bytes]:
    return [b'{"a": [1, 2.5, "x"], "b": {"c": null, "d": true}}']


class Reader:
    """How files of a kind are read, the bombs for it, and good files to mutate."""

    def __init__(
        self,
        suffix: str,
        read: Callable[[Path], Any],
        bombs: Callable[[], Mapping[str, bytes | str]],
        good: Callable[[], list[bytes]],
    ) -> None:
        self.suffix, self.read, self.bombs, self.good = suffix, read, bombs, good


def _bombs(name: str) -> Callable[[], Mapping[str, bytes | str]]:
    def found() -> Mapping[str, bytes | str]:
        import bombs

        return getattr(bombs, name)  # type: ignore[no-any-return]

    return found


READERS = {
    "pickle": Reader(".pkl", _pickle, _bombs("PICKLES"), _good_pickles),
    "npy": Reader(".npy", _npy, _bombs("ARRAYS"), _good_arrays),
    "npz": Reader(".npz", _npz, _bombs("ARCHIVES"), _good_archives),
    "image": Reader(".png", _image, _bombs("IMAGES"), _good_images),
    "yaml": Reader(".yaml", _yaml, _bombs("YAML"), _good_yaml),
    "camera": Reader(".yaml", _camera, _bombs("YAML"), _good_cameras),
    "urdf": Reader(".urdf", _urdf, _bombs("URDFS"), _good_urdfs),
    "json": Reader(".json", _json, _bombs("JSON"), _good_json),
}


def _files(kind: str, count: int) -> Mapping[str, bytes | str]:
    import bombs
    import numpy as np

    rng, good = np.random.default_rng(0), READERS[kind].good()
    mutations = {str(i): bombs.mutated(good[i % len(good)], rng) for i in range(count)}
    return {**READERS[kind].bombs(), **mutations}


def main(kind: str, count: int) -> None:
    """Read every file and print what became of it."""
    from latentplan.errors import LatentplanError

    reader, files = READERS[kind], _files(kind, count)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"file{reader.suffix}"
        path.write_bytes(reader.good()[0])
        reader.read(path)  # all that is imported is imported now
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
        for name, content in files.items():
            data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
            path.write_bytes(data)
            signal.setitimer(signal.ITIMER_PROF, SECONDS)  # kills
            try:
                reader.read(path)
                outcome = "read"
            except LatentplanError as e:
                assert str(e).isprintable() and str(path) in str(e), str(e)
                outcome = type(e).__name__
            signal.setitimer(signal.ITIMER_PROF, 0)
            print(json.dumps([name, outcome]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
