"""What `kills.py` interrupts: operations, the data they read, and a digest of what they write."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMES = re.compile(r"created|command|seconds|_ms_|act_ms|duration|rate")  # keys that differ by run


@dataclass(frozen=True)
class Operation:
    """Command lines, run one after another in an empty folder; IN is the folder of the inputs."""

    name: str
    lines: tuple[tuple[str, ...], ...]
    worker: bool = False  # whether a worker process is killed, and not the command itself
    share: float = 1.0  # of the kills asked for: fewer of what takes long


def operations() -> list[Operation]:
    """Return all: collect, imports, trainings of everything registered, exports, plan."""
    collect = ("collect", "toy:ToyEnv", "--out", "a.zarr", "--episodes", "40", "length=5")
    made = [Operation("collect, 1 worker", ((*collect, "--workers", "1"),))]
    for name, line in (("collect", collect), ("import calvin", _import("calvin"))):
        both = (*line, "--workers", "2")
        made.append(Operation(f"{name}, 2 workers, writer killed", (both,), share=0.35))
        made.append(
            Operation(f"{name}, 2 workers, worker killed", (both,), worker=True, share=0.35)
        )
    made += [
        Operation(f"import {format}", ((*_import(format), "--workers", "1"),)) for format in SOURCES
    ]
    made += [
        Operation(f"train {name}", lines, share=0.5 if name == "videoworld" else 1.0)
        for name, lines in trainings().items()
    ]
    export = ("export", "lerobot", "IN/squares.zarr", "out", "--fps", "10")
    made.append(Operation("export lerobot, videos", ((*export, "codec=libx264"),)))
    made.append(Operation("export lerobot, images", ((*export, "--images"),)))
    plan = ("plan", "--run", "IN/run", "--env", "toy:ToyEnv", "--episodes", "2", "--out", "report")
    plan += ("evaluation.length=3", "evaluation.states=1", "planner.candidates=16")
    plan += ("planner.elites=4", "planner.iterations=2")
    made.append(Operation("plan", (plan,)))
    return made


SOURCES = {  # where each sample lies below IN
    "bag": "bag",
    "calvin": "calvin",
    "lerobot": "lerobot",
    "minari": "minari",
    "rlbench": "rlbench",
    "robomimic": "robomimic/low_dim.hdf5",
}


def _import(format: str) -> tuple[str, ...]:
    own = {"calvin": ("length=2",)}.get(format, ())
    return ("import", format, f"IN/{SOURCES[format]}", "--out", "a.zarr", *own)


def trainings() -> dict[str, tuple[tuple[str, ...], ...]]:
    """Return the command lines that train each registered model and tokenizer, tiny."""
    from trainings import NAMES, settings, small

    tiny = {name: (*small(name), *settings(kind, name)) for kind, name in NAMES}
    lines = {name: (_train(name, *values),) for name, values in tiny.items()}
    members = tuple(
        (*_train("cfm", *tiny["cfm"], run=f"member-{seed}"), "--seed", str(seed))
        for seed in (1, 2, 3)
    )
    return {**lines, "an ensemble of cfm": members}


def _train(name: str, *values: str, run: str = "run") -> tuple[str, ...]:
    return ("train", name, "--data", "IN/squares.zarr", "--run", run, "--resume", *values)


def prepare(folder: Path) -> None:
    """Write all inputs: a sample of every format, a store, and a run."""
    import bag_writer
    import calvin_writer
    import lerobot_writer
    import minari_writer
    import rlbench_writer
    import robomimic_writer
    from trainings import stored

    from latentplan.cli import main

    bag_writer.write(folder / "bag")
    calvin_writer.write(folder / "calvin")
    (folder / "lerobot").mkdir()
    lerobot_writer.dataset(folder / "lerobot")
    minari_writer.write(folder / "minari")
    rlbench_writer.write_rlbench(folder / "rlbench", episodes=6)
    robomimic_writer.write(folder / SOURCES["robomimic"], numbers=tuple(range(20)))
    stored(folder / "squares.zarr")
    line = ("collect", "toy:ToyEnv", "--out", f"{folder}/toy.zarr", "--episodes", "8")
    assert main([*line, "--workers", "0", "length=5"]) == 0
    (line,) = trainings()["cfm"]
    data = {"IN/squares.zarr": f"{folder}/toy.zarr", "run": f"{folder}/run"}
    assert main([*(data.get(word, word) for word in line), "training.window=2"]) == 0  # as it fits


def digest(folder: Path) -> dict[str, str]:
    """Return a digest of each thing in a folder, without what the clock decides."""
    found: dict[str, str] = {}
    stores = [file.parent for file in folder.rglob(".lock") if (file.parent / "zarr.json").exists()]
    stores += [file for file in folder.rglob("*.zarr") if file not in stores]
    for store in stores:
        found |= {f"{store.relative_to(folder)}: {k}": v for k, v in _store(store).items()}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and not any(store in file.parents for store in stores):
            read = READERS.get(file.suffix, Path.read_bytes)
            # A resumed run has another file for the rest of its curves.
            content = b"" if "tfevents" in file.name else read(file)
            found[_name(file, folder)] = hashlib.sha256(content).hexdigest()[:16]
    return found


def names(folder: Path) -> set[str]:
    """Return the names of all files, but for those inside of stores."""
    kept = set()
    for file in folder.rglob("*"):
        parents = file.relative_to(folder).parents
        inside = any(part.suffix == ".zarr" for part in parents)
        if file.is_file() and (not inside or "partial" in str(file)):
            kept.add(_name(file, folder))
    return kept


def _name(file: Path, folder: Path) -> str:
    """Return the name in a folder; that of TensorBoard's files has the time and the process."""
    name = str(file.relative_to(folder))
    return re.sub(r"tfevents\..*", "tfevents", name)


def _store(path: Path) -> dict[str, str]:
    from latentplan.data.store import ZarrStore

    with ZarrStore.open(path) as store:
        found = {
            name: hashlib.sha256(store.rows(name, 0, int(store.ends[-1])).tobytes())
            for name in [*(f"observation/{key}" for key in store.spec.observation), "action"]
        }
        episodes = hashlib.sha256(json.dumps(store.settings, sort_keys=True).encode())
        episodes.update(json.dumps(store.spec.to_json(), sort_keys=True).encode())
        for index in range(len(store)):
            e = store.episode(index)
            about = (e.seed, e.terminated, e.truncated, sorted(e.info.items()), e.labels)
            episodes.update(repr(about).encode() + e.rewards.tobytes())
    return {name: d.hexdigest()[:16] for name, d in {**found, "episodes": episodes}.items()}


def _tensors(file: Path) -> bytes:
    from safetensors import safe_open

    with safe_open(file, "numpy") as content:
        header = sorted((content.metadata() or {}).items())
        values = [(k, v.dtype.str, v.shape, v.tobytes()) for k in sorted(content.keys())
                  for v in [content.get_tensor(k)]]  # fmt: skip
    return repr((header, values)).encode()


def _json(file: Path) -> bytes:
    return json.dumps(_timeless(json.loads(file.read_text())), sort_keys=True).encode()


def _lines(file: Path) -> bytes:
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return json.dumps([_timeless(line) for line in lines], sort_keys=True).encode()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if not TIMES.search(k)}
    return [_timeless(each) for each in value] if isinstance(value, list) else value


def _html(file: Path) -> bytes:
    """Return the pictures of a report; its text has times."""
    return "\n".join(re.findall(r"data:image/png;base64,[^\"']+", file.read_text())).encode()


READERS: dict[str, Callable[[Path], bytes]] = {
    ".safetensors": _tensors,
    ".json": _json,
    ".jsonl": _lines,
    ".html": _html,
}
