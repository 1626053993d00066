"""Measure VideoWorld on the tabletop, for docs/results/videoworld.md.

    python benchmarks/videoworld.py success noop random oracle cloned=FILE [NAME=]RUN ...
    python benchmarks/videoworld.py intervene RUN
    python benchmarks/videoworld.py probe RUN --data demos.zarr
    python benchmarks/videoworld.py timing RUN [--preset videoworld_gpu] [--device cuda]
    python benchmarks/videoworld.py page

`success` counts, for each task category of the env `tabletop_short`, the attempts that complete the
task within 64 actions; all policies have the same starts. `intervene` replaces generated codes with
random ones before actions are decoded. `probe` fits linear maps from codes to actions. `timing`
with a preset times an untrained model of that size, for the observations and tasks of the run.
Figures are written to benchmarks/videoworld.json, one row per name; existing rows are kept unless
`--again` is set. `page` writes the tables of docs/results/videoworld.md.
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
PROPOSALS = "videoworld_proposals_*.json"  # written by videoworld_proposals.py
BASELINES = {"noop": rollouts.Noop, "random": rollouts.Random, "oracle": rollouts.Oracle}

Row = dict[str, Any]


def policy_of(argument: str, *, chunk: int) -> tuple[rollouts.Policy, Row]:
    """Return the policy of an argument of `success`, and its identity."""
    name, path = named(argument)
    if argument in BASELINES:
        return BASELINES[argument](), {}
    if name.startswith("cloned"):
        network = videoworld_cloning.load(path)
        identity = {"file": Path(path).name, "sha256": digest(Path(path))}
        return rollouts.Cloning(network, videoworld_cloning.CAMERAS), identity
    return videoworld_agent.Agent(videoworld_agent.load(path), chunk=chunk), about(path, chunk)


def named(argument: str) -> tuple[str, str]:
    """Return the name and the path of an argument [NAME=]PATH; a path may contain a =, too."""
    name, given, path = argument.partition("=")
    if not given or Path(argument).exists():
        return Path(argument).name, argument
    return name, path


def about(run: str, chunk: int) -> Row:
    """Return the identity of a run: digest, settings and held-out figures."""
    file = checkpoint.find(run)
    header = checkpoint.read_header(file)
    identity = {"run": Path(run).name, "sha256": digest(file), "chunk": chunk}
    return identity | {"model": dict(header.config), "held_out": dict(header.metrics)}


def digest(file: Path) -> str:
    """Return the start of a file's SHA-256."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def success(policy: rollouts.Policy, *, episodes: int, category: str) -> Row:
    """Return the success rate of a category of tasks, with a 95 % interval."""
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
        "mean_actions_of_successes": round(sum(a.actions for a in done) / max(1, len(done)), 1),
        "ms_per_action": round(milliseconds, 2),
    }


def intervened(run: str, *, chunk: int) -> dict[str, rollouts.Policy]:
    """Return policies of a run with no code, each single code, or all codes random."""
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
    policy: rollouts.Policy, identity: Row, *, keys: Sequence[str], options: argparse.Namespace
) -> None:
    """Measure each category that a row lacks, and write the row after each."""
    row = find(keys, file=options.json)
    if options.again or row is None:
        row = {"categories": {}}
    elif identity.get("sha256") != row.get("sha256") or identity.get("chunk") != row.get("chunk"):
        raise SystemExit(f"{' '.join(keys)}: the row has other weights; --again, or NAME=RUN")
    for category in options.categories:
        if row["categories"].get(category, {}).get("attempts", 0) >= options.episodes:
            print(f"  {category:12s} exists")
            continue
        found = success(policy, episodes=options.episodes, category=category)
        row = identity | {"categories": row["categories"] | {category: found}}
        write(keys, row, file=options.json)


def timed(run: str, options: argparse.Namespace) -> Row:
    """Return the timing of a run, or of an untrained one like it."""
    with TemporaryDirectory() as folder:
        if options.preset:
            run = videoworld_timing.untrained(options.preset, like=run, out=Path(folder))
        row = videoworld_timing.timing(run, device=options.device, chunk=options.chunk)
        identity = about(run, options.chunk)
    return ({"preset": options.preset} if options.preset else identity) | row


def find(keys: Sequence[str], *, file: Path) -> Row | None:
    """Return the row of the file at these keys; None if there is none."""
    found = json.loads(file.read_text()) if file.is_file() else {}
    for key in keys:
        if key not in found:
            return None
        found = found[key]
    return dict(found)


def write(keys: Sequence[str], row: Row, *, file: Path) -> None:
    """Write a row at these keys, and keep the other rows of the file."""
    whole = json.loads(file.read_text()) if file.is_file() else {}
    parent = whole
    for key in keys[:-1]:
        parent = parent.setdefault(key, {})
    parent[keys[-1]] = row | {"provenance": provenance()}
    with replacing(file) as partial:
        partial.write_text(json.dumps(whole, indent=1) + "\n")


def main() -> None:
    """Measure the policies of the command line, or write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("measure", choices=("success", "intervene", "probe", "timing", "page"))
    parser.add_argument("policies", nargs="*", metavar="POLICY", help="a baseline, or [NAME=]RUN")
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
    options = parser.parse_intermixed_args()
    if options.measure == "page":
        figures = json.loads(options.json.read_text())
        reports = sorted(FILE.parent.glob(PROPOSALS))
        figures["proposals"] = [json.loads(each.read_text()) for each in reports]
        videoworld_page.write(figures)
    for argument in options.policies:
        name, path = named(argument)
        if options.measure == "timing" and options.preset:
            name = f"{options.preset}, untrained"
        print(f"{options.measure} {name}", flush=True)
        if options.measure == "success":
            policy, identity = policy_of(argument, chunk=options.chunk)
            count(policy, identity, keys=("success", name), options=options)
        elif options.measure == "intervene":
            identity = about(path, options.chunk)
            for which, policy in intervened(path, chunk=options.chunk).items():
                print(f" random codes: {which}", flush=True)
                count(policy, identity, keys=("intervene", name, which), options=options)
        elif find((options.measure, name), file=options.json) and not options.again:
            print("  exists")
        elif options.measure == "probe":
            if not options.data:
                parser.error("probe needs --data")
            row = videoworld_probe.probe(videoworld_agent.load(path), options.data)
            write(("probe", name), about(path, options.chunk) | row, file=options.json)
        else:
            write(("timing", name), timed(path, options), file=options.json)


if __name__ == "__main__":
    main()
