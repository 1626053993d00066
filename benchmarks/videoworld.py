"""What VideoWorld reaches on the tabletop: figures for docs/results/videoworld.md.

    python benchmarks/videoworld.py success random noop oracle cloned=FILE RUN [NAME=RUN ...]
    python benchmarks/videoworld.py intervene RUN

`success` counts, for each category of tasks of env `tabletop_short`, attempts in which the task is
done within 64 actions; the starts are the same for all. `intervene` replaces generated codes by
random ones before actions are read off. Figures go into benchmarks/videoworld.json, each row under
its name; rows that are there are kept, unless `--again`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import videoworld_agent
import videoworld_cloning
import videoworld_rollouts as rollouts

from latentplan.evaluation.metrics import wilson
from latentplan.evaluation.provenance import provenance
from latentplan.files import replacing
from latentplan.training import checkpoint

FILE = Path(__file__).with_suffix(".json")
CONTROLS = {"noop": rollouts.Noop, "random": rollouts.Random, "oracle": rollouts.Oracle}

Row = dict[str, Any]


def agent_of(what: str, *, chunk: int) -> tuple[str, rollouts.Policy, Row]:
    """Return the name, the policy, and what is to be said of it, of an argument of `success`."""
    if what in CONTROLS:
        return what, CONTROLS[what](), {}
    name, _, path = what.rpartition("=")
    if name.startswith("cloned"):
        network = videoworld_cloning.load(path)
        said = {"file": Path(path).name, "sha256": digest(Path(path))}
        return name, rollouts.Cloning(network, videoworld_cloning.CAMERAS), said
    model = videoworld_agent.load(path)
    return name or Path(path).name, videoworld_agent.Agent(model, chunk=chunk), about(path, chunk)


def about(run: str, chunk: int) -> Row:
    """Return what tells a run from others."""
    file = checkpoint.find(run)
    header = checkpoint.read_header(file, format=checkpoint.FORMAT)
    return {
        "run": str(run),
        "sha256": digest(file),
        "chunk": chunk,
        "model": header["config"],
        "held out": header["metrics"],
    }


def digest(file: Path) -> str:
    """Return the start of a file's SHA-256."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def success(policy: rollouts.Policy, *, episodes: int, categories: Sequence[str]) -> Row:
    """Return how often the tasks of each category are done, with a 95 % interval."""
    row: Row = {}
    for category in categories:
        tasks = rollouts.CATEGORIES[category]
        made, milliseconds = rollouts.attempts(policy, tasks, episodes=episodes)
        done = [attempt for attempt in made if attempt.success]
        low, high = wilson(len(done), len(made))
        row[category] = {
            "success": round(len(done) / len(made), 4),
            "interval": [round(low, 4), round(high, 4)],
            "attempts": len(made),
            "tasks": {
                task: [sum(a.success for a in made if a.task == task),
                       sum(a.task == task for a in made)]
                for task in tasks
            },
            "mean actions of a success": sum(a.actions for a in done) / max(1, len(done)),
            "ms an action, batched": round(milliseconds, 2),
        }  # fmt: skip
        print(f"  {category:12s} {len(done)} of {len(made)}", flush=True)
    return row


def intervene(run: str, *, episodes: int, categories: Sequence[str], chunk: int) -> Row:
    """Return success with each of the codes replaced by random ones, with all, and with none."""
    model = videoworld_agent.load(run)
    horizon = model.generator.config.horizon
    which = {"none": ()} | {f"code {k + 1}": (k,) for k in range(horizon)}
    which |= {"all": tuple(range(horizon))}
    rows = {}
    for name, codes in which.items():
        print(f" {name}", flush=True)
        policy = videoworld_agent.Agent(model, chunk=chunk, intervene=codes)
        rows[name] = success(policy, episodes=episodes, categories=categories)
    return {"reads": model.inverse.config.reads, "replaced": rows}


def keep(section: str, name: str, row: Row, *, file: Path) -> None:
    """Write a row into the file, beside the others."""
    found = json.loads(file.read_text()) if file.is_file() else {}
    found.setdefault(section, {})[name] = row | {"made with": provenance()}
    with replacing(file) as partial:
        partial.write_text(json.dumps(found, indent=1) + "\n")


def has(section: str, name: str, *, file: Path) -> bool:
    """Return whether the file has the row."""
    return file.is_file() and name in json.loads(file.read_text()).get(section, {})


def main() -> None:
    """Do what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("success", "intervene"))
    parser.add_argument("agents", nargs="+", metavar="AGENT", help="a control, or [NAME=]RUN")
    parser.add_argument("--episodes", type=int, default=50, help="of a category")
    parser.add_argument(
        "--categories", nargs="+", choices=rollouts.CATEGORIES, default=rollouts.COUNTED
    )
    parser.add_argument("--chunk", type=int, default=1, help="actions sent before planning again")
    parser.add_argument("--json", type=Path, default=FILE)
    parser.add_argument("--again", action="store_true", help="make rows anew that are there")
    given = parser.parse_args()
    for what in given.agents:
        name = what if what in CONTROLS else (what.rpartition("=")[0] or Path(what).name)
        if has(given.what, name, file=given.json) and not given.again:
            print(f"{given.what} {name}: is there, --again makes it anew")
            continue
        print(f"{given.what} {name}", flush=True)
        asked = {"episodes": given.episodes, "categories": given.categories}
        if given.what == "success":
            _, policy, said = agent_of(what, chunk=given.chunk)
            row = said | {"categories": success(policy, **asked)}
        else:
            run = what.rpartition("=")[2]
            row = about(run, given.chunk) | intervene(run, chunk=given.chunk, **asked)
        keep(given.what, name, row, file=given.json)


if __name__ == "__main__":
    main()
