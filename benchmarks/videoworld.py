"""What VideoWorld reaches on the tabletop: figures for docs/results/videoworld.md.

    python benchmarks/videoworld.py success noop random oracle cloned=FILE [NAME=]RUN ...
    python benchmarks/videoworld.py intervene RUN
    python benchmarks/videoworld.py probe RUN --data demos.zarr
    python benchmarks/videoworld.py timing RUN [--preset videoworld_gpu] [--device cuda]
    python benchmarks/videoworld.py page

`success` counts, for each category of tasks of env `tabletop_short`, attempts in which the task is
done within 64 actions; the starts are the same for all. `intervene` replaces generated codes by
random ones before actions are read off. `probe` fits linear maps from codes to actions. `timing`
with a preset is of its sizes, untrained, for the observations and tasks of the run. Figures go into
benchmarks/videoworld.json, each row under its name; what is there is kept, unless `--again`. `page`
writes them into the tables of docs/results/videoworld.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import videoworld_agent
import videoworld_cloning
import videoworld_page
import videoworld_probe
import videoworld_rollouts as rollouts
import videoworld_timing

from latentplan.evaluation.metrics import wilson
from latentplan.evaluation.provenance import provenance
from latentplan.files import replacing
from latentplan.training import checkpoint

FILE = Path(__file__).with_suffix(".json")
PROPOSALS = "videoworld_proposals_*.json"  # beside it: what videoworld_proposals.py measured
CONTROLS = {"noop": rollouts.Noop, "random": rollouts.Random, "oracle": rollouts.Oracle}

Row = dict[str, Any]


def agent_of(what: str, *, chunk: int) -> tuple[rollouts.Policy, Row]:
    """Return the policy of an argument of `success`, and what tells it from others."""
    name, path = named(what)
    if what in CONTROLS:
        return CONTROLS[what](), {}
    if name.startswith("cloned"):
        network = videoworld_cloning.load(path)
        said = {"file": Path(path).name, "sha256": digest(Path(path))}
        return rollouts.Cloning(network, videoworld_cloning.CAMERAS), said
    return videoworld_agent.Agent(videoworld_agent.load(path), chunk=chunk), about(path, chunk)


def named(what: str) -> tuple[str, str]:
    """Return the row's name and the path of an argument: [NAME=]PATH; a path may have a =, too."""
    name, given, path = what.partition("=")
    if not given or Path(what).exists():
        return Path(what).name, what
    return name, path


def about(run: str, chunk: int) -> Row:
    """Return what tells a run from others."""
    file = checkpoint.find(run)
    header = checkpoint.read_header(file)
    said = {"run": Path(run).name, "sha256": digest(file), "chunk": chunk}
    return said | {"model": dict(header.config), "held out": dict(header.metrics)}


def digest(file: Path) -> str:
    """Return the start of a file's SHA-256."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def success(policy: rollouts.Policy, *, episodes: int, category: str) -> Row:
    """Return how often the tasks of a category are done, with a 95 % interval."""
    tasks = rollouts.CATEGORIES[category]
    made, milliseconds = rollouts.attempts(policy, tasks, episodes=episodes)
    done = [attempt for attempt in made if attempt.success]
    low, high = wilson(len(done), len(made))
    print(f"  {category:12s} {len(done)} of {len(made)}", flush=True)
    return {
        "success": round(len(done) / len(made), 4),
        "interval": [round(low, 4), round(high, 4)],
        "attempts": len(made),
        "done": {task: sum(a.task == task for a in done) for task in tasks},
        "seeds": [min(a.seed for a in made), max(a.seed for a in made)],
        "mean actions of a success": round(sum(a.actions for a in done) / max(1, len(done)), 1),
        "ms an action, batched": round(milliseconds, 2),
    }


def intervened(run: str, *, chunk: int) -> dict[str, rollouts.Policy]:
    """Return a run's policies with each of its codes replaced by random ones, all, and none."""
    model = videoworld_agent.load(run)
    horizon = model.transformer.config.horizon
    which: dict[str, tuple[int, ...]] = {"none": ()}
    which |= {f"code {k + 1}": (k,) for k in range(horizon)}
    if horizon > 1:
        which["all"] = tuple(range(horizon))
    return {
        name: videoworld_agent.Agent(model, chunk=chunk, intervene=codes)
        for name, codes in which.items()
    }


def count(
    policy: rollouts.Policy, said: Row, *, where: Sequence[str], asked: argparse.Namespace
) -> None:
    """Count each category that is missing in a row, and write it down at once."""
    row = find(where, file=asked.json)
    if asked.again or row is None:
        row = {"categories": {}}
    elif said.get("sha256") != row.get("sha256") or said.get("chunk") != row.get("chunk"):
        raise SystemExit(f"{' '.join(where)}: is there, of other weights; --again, or NAME=RUN")
    for category in asked.categories:
        if row["categories"].get(category, {}).get("attempts", 0) >= asked.episodes:
            print(f"  {category:12s} is there")
            continue
        found = success(policy, episodes=asked.episodes, category=category)
        row = said | {"categories": row["categories"] | {category: found}}
        keep(where, row, file=asked.json)


def timed(run: str, asked: argparse.Namespace) -> Row:
    """Return the times of a run, or of an untrained one like it."""
    with TemporaryDirectory() as folder:
        if asked.preset:
            run = videoworld_timing.untrained(asked.preset, like=run, out=Path(folder))
        row = videoworld_timing.timing(run, device=asked.device, chunk=asked.chunk)
        said = about(run, asked.chunk)
    return ({"preset": asked.preset} if asked.preset else said) | row


def find(where: Sequence[str], *, file: Path) -> Row | None:
    """Return the row of the file at these keys, None where there is none."""
    found = json.loads(file.read_text()) if file.is_file() else {}
    for key in where:
        if key not in found:
            return None
        found = found[key]
    return dict(found)


def keep(where: Sequence[str], row: Row, *, file: Path) -> None:
    """Write a row into the file, beside the others."""
    whole = json.loads(file.read_text()) if file.is_file() else {}
    place = whole
    for key in where[:-1]:
        place = place.setdefault(key, {})
    place[where[-1]] = row | {"made with": provenance()}
    with replacing(file) as partial:
        partial.write_text(json.dumps(whole, indent=1) + "\n")


def main() -> None:
    """Do what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("success", "intervene", "probe", "timing", "page"))
    parser.add_argument("agents", nargs="*", metavar="AGENT", help="a control, or [NAME=]RUN")
    parser.add_argument("--episodes", type=int, default=50, help="of a category")
    parser.add_argument(
        "--categories", nargs="+", choices=rollouts.CATEGORIES, default=rollouts.COUNTED
    )
    parser.add_argument("--chunk", type=int, default=1, help="actions sent before planning again")
    parser.add_argument("--data", help="demonstrations, for probe")
    parser.add_argument("--device", default="cpu", help="of timing")
    parser.add_argument("--preset", help="of timing: networks of these sizes, untrained")
    parser.add_argument("--json", type=Path, default=FILE)
    parser.add_argument("--again", action="store_true", help="measure existing rows again")
    asked = parser.parse_intermixed_args()
    if asked.what == "page":
        figures = json.loads(asked.json.read_text())
        reports = sorted(FILE.parent.glob(PROPOSALS))
        figures["proposals"] = [json.loads(each.read_text()) for each in reports]
        videoworld_page.write(figures)
    for what in asked.agents:
        name, path = named(what)
        if asked.what == "timing" and asked.preset:
            name = f"{asked.preset}, untrained"
        print(f"{asked.what} {name}", flush=True)
        if asked.what == "success":
            policy, said = agent_of(what, chunk=asked.chunk)
            count(policy, said, where=("success", name), asked=asked)
        elif asked.what == "intervene":
            said = about(path, asked.chunk)
            for which, policy in intervened(path, chunk=asked.chunk).items():
                print(f" replaced: {which}", flush=True)
                count(policy, said, where=("intervene", name, which), asked=asked)
        elif find((asked.what, name), file=asked.json) and not asked.again:
            print("  is there")
        else:
            if asked.what == "probe":
                if not asked.data:
                    parser.error("probe needs --data")
                row = videoworld_probe.probe(videoworld_agent.load(path), asked.data)
                keep((asked.what, name), about(path, asked.chunk) | row, file=asked.json)
            else:
                row = timed(path, asked)
                keep((asked.what, name), row, file=asked.json)


if __name__ == "__main__":
    main()
