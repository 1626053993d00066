"""Every entry point that reads what others wrote, with a valid sample that is mutated."""

from __future__ import annotations

import contextlib
import io
import pickle
import resource
import shutil
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bag_writer
import calvin_writer
import lerobot_writer
import minari_writer
import numpy as np
import rlbench_writer
import robomimic_writer
from bombs import mutated

from latentplan import cli, config, registry
from latentplan.data import npz, unpickling
from latentplan.data.selection import Selection
from latentplan.data.store import ZarrStore
from latentplan.errors import LatentplanError
from latentplan.models.cfm import CFM
from latentplan.real_robot.link import messages
from latentplan.real_robot.perception import calibration_samples
from latentplan.robots import camera, description, urdf
from latentplan.training import checkpoint
from latentplan.types import Training

HANG = 10  # s of the processor, for one input
WAIT = 120  # s of the clock, for one input on a busy machine
URDF = b"""<robot name="r"><link name="base"/><link name="hand"><inertial><mass value="1"/>
<origin xyz="0 0 0.1" rpy="0 0 0"/></inertial></link><joint name="j" type="revolute">
<parent link="base"/><child link="hand"/><origin xyz="0 0 0.3" rpy="0 0 0"/><axis xyz="0 0 1"/>
<limit lower="-1" upper="1" velocity="2" effort="10"/></joint></robot>"""
CAMERA = b"""name: rgb\nwidth: 64\nheight: 48\nfx: 60.0\nfy: 60.0\ncx: 31.5\ncy: 23.5
distortion: [0.1, 0.0, 0.0, 0.0]\nmount: table\nposition: [0.5, 0.0, 0.8]
rotation: [0.0, 1.0, 0.0, 0.0]\n"""
JOINTS = b'[{"image": "a.png", "q": {"panda_joint1": 0.1, "panda_joint2": 0.2}}]'
MESSAGE = b'{"kind": "act", "values": {"a": 1}, "arrays": {"x": ["float32", [3]]}}\n' + b"\0" * 12


@dataclass
class Entry:
    """A reader of the file `name` in a folder, which is replaced by mutations of what it holds."""

    read: Callable[[Path], Any]
    name: str
    make: Callable[[Path], Any]  # writes the sample into the folder
    files: list[Path] = field(default_factory=list)


def _file(content: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(content)


def _overrides(path: Path) -> None:
    text = path.read_bytes().decode(errors="surrogateescape").splitlines()
    config.load({"model": CFM.Config, "training": Training}, overrides=text)


def _arguments(path: Path) -> None:
    words = path.read_bytes().decode(errors="surrogateescape").split()
    command = ["config", "list", "show", "export", "check"][len(words) % 5]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = cli.main([command, *words])
    assert code in (0, 2), code


def _message(path: Path) -> None:
    head, _, body = path.read_bytes().partition(b"\n")
    messages.decode(head, body)


def _npz(path: Path) -> None:
    npz.read(path, npz.names(path))


def _store(path: Path) -> None:
    with ZarrStore.open(path) as store:
        for index in range(len(store)):
            store.episode(index)


def _source(name: str) -> Callable[[Path], None]:
    def read(path: Path) -> None:
        kind = registry.get("source", name)
        source = Selection(kind(path, kind.Config()))
        for index in range(min(len(source), 2)):
            source.episode(index)

    return read


def _samples(path: Path) -> None:
    for _ in calibration_samples.read(str(path), description.load("panda"), camera="rgb"):
        pass


def _collected(path: Path) -> None:
    line = ["collect", "toy:ToyEnv", "--episodes", "2", "--workers", "0", "length=2"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert cli.main([*line, "--out", str(path)]) == 0


def _checkpoint(path: Path) -> None:
    from toy import ToyEnv

    sizes = {"channels": (4, 4), "strides": (2, 2), "hidden": (8,), "latent": 4}
    model = CFM(ToyEnv().data_spec, CFM.Config(**sizes, symmetric=False))  # type: ignore[arg-type]
    checkpoint.save(path, model, name="cfm", step=1, metrics={"loss": 1.0})


def _joints(path: Path) -> None:
    path.mkdir()
    (path / "joints.json").write_bytes(JOINTS)


def _arrays(path: Path) -> None:
    np.savez_compressed(path, a=np.arange(6.0), b=np.zeros((2, 3), np.uint8))


def _array(path: Path) -> None:
    np.save(path, np.array({"a": np.arange(3), "b": ["x", 1.0]}, object), allow_pickle=True)


def _lerobot(path: Path) -> None:
    path.mkdir()
    lerobot_writer.dataset(path, kind="image")


ENTRIES: dict[str, Entry] = {
    "overrides": Entry(_overrides, "a.txt", _file(b"latent=8\nchannels=[4,4]\ntraining.steps=1e3")),
    "command lines": Entry(_arguments, "a.txt", _file(b"model cfm --out a.png --episode 3 fps=2")),
    "YAML": Entry(config.read_yaml, "a.yaml", _file(CAMERA)),
    "messages": Entry(_message, "a.bin", _file(MESSAGE)),
    "cameras": Entry(lambda path: camera.load(str(path)), "a.yaml", _file(CAMERA)),
    "URDF": Entry(lambda path: urdf.read(path, required=("low", "high")), "a.urdf", _file(URDF)),
    "calibration folders": Entry(_samples, "a", _joints),
    "pickles": Entry(
        unpickling.read_pickle, "a.pkl", _file(pickle.dumps({"a": [1, 2.0, "x"], "b": {3: None}}))
    ),
    "npy": Entry(unpickling.read_npy, "a.npy", _array),
    "npz": Entry(_npz, "a.npz", _arrays),
    "checkpoints": Entry(checkpoint.load, "a.safetensors", _checkpoint),
    "stores": Entry(_store, "a.zarr", _collected),
    "HDF5": Entry(_source("robomimic"), "a.hdf5", robomimic_writer.write),
    "minari": Entry(_source("minari"), "a", minari_writer.write),
    "bags": Entry(_source("bag"), "a", bag_writer.write),
    "calvin": Entry(_source("calvin"), "a", calvin_writer.write),
    "lerobot": Entry(_source("lerobot"), "a", _lerobot),
    "rlbench": Entry(_source("rlbench"), "a", rlbench_writer.write_rlbench),
}


class Hang(Exception):
    """An input takes too long."""


def search(
    name: str, folder: Path, *, seed: int, inputs: int = 10**9, seconds: float = 1e9
) -> dict[str, Any]:
    """Return counts for an entry point: mutate one file of its sample, read, put it back.

    Found is every exception but a LatentplanError, with the place that raised it.
    """
    entry = ENTRIES[name]
    path = folder / entry.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    entry.make(path)
    files = sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]
    row: dict[str, Any] = {"entry": name, "inputs": 0, "read": 0, "refused": 0, "found": {}}
    begun, longest = time.monotonic(), 0.0
    signal.signal(signal.SIGALRM, _hang)
    signal.signal(signal.SIGPROF, _hang)
    while row["inputs"] < inputs and time.monotonic() - begun < seconds:
        rng = np.random.default_rng([seed, row["inputs"]])
        file = files[int(rng.integers(len(files)))]
        content = file.read_bytes()
        row["inputs"] += 1
        file.write_bytes(mutated(content, rng))
        started = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, HANG)
        signal.alarm(WAIT)
        try:
            entry.read(path)
            row["read"] += 1
        except LatentplanError:
            row["refused"] += 1
        except Exception as e:
            last = traceback.extract_tb(e.__traceback__)[-1]
            ours = [f for f in traceback.extract_tb(e.__traceback__) if "latentplan" in f.filename]
            place = ours[-1] if ours else last
            text = f"{type(e).__name__} at {Path(place.filename).name}:{place.lineno}"
            known = row["found"].setdefault(text, {"count": 0, "said": str(e)[:200]})
            known["count"] += 1
            known.setdefault("input", row["inputs"] - 1)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.alarm(0)
        longest = max(longest, time.process_time() - started)
        file.write_bytes(content)
    row["seconds"], row["longest_s"] = round(time.monotonic() - begun, 1), round(longest, 2)
    row["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return row


def _hang(*_: object) -> None:
    raise Hang(f"more than {HANG} s of work, or {WAIT} s of waiting")
