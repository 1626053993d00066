"""VideoWorld with more and fewer codes, and with larger and smaller books: trained, then counted.

    python benchmarks/videoworld_ablations.py --data demos.zarr --folder runs/ablations
        [--model PRESET] [--only horizon labels book] [--episodes 50] [--prefix "fine, "]
        [training.transformer.steps=...]

Each variant is a run of `latentplan train --resume` in a folder of its own; stages that agree are
trained once, in FOLDER/stages. For the horizon one latent dynamics model of the longest horizon is
trained, and the transformer is told its first H codes: code h looks at frames t to t + h alone, so
they mean the same. H = 0 is the transformer on video alone. With `labels` the same horizons once
more, the inverse dynamics told the actions of a tenth of the episodes. What was trained and counted
already is left as it is.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import videoworld
import videoworld_agent
import videoworld_rollouts as rollouts

HORIZONS = (0, 1, 2, 4, 8)
BOOKS = {9: "[3,3]", 64: "[4,4,4]", 1000: "[8,5,5,5]"}  # codes: levels, of 3 at least


def variants(only: list[str], horizons: list[int], books: list[int]) -> dict[str, list[str]]:
    """Return the settings of each variant, by its name."""
    found = {}
    longest = max(horizons)
    for horizon in horizons:
        codes = [f"model.ldm.horizon={longest}", f"model.transformer.horizon={horizon}"]
        if "horizon" in only:
            found[f"H={horizon}"] = codes
        if "labels" in only:
            found[f"H={horizon}, actions of a tenth"] = [*codes, "model.inverse.labelled=0.1"]
    if "book" in only:
        for book in books:
            found[f"{book} codes"] = [f"model.ldm.levels={BOOKS[book]}"]
    return found


def main() -> None:
    """Train and count each variant."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="of every variant")
    parser.add_argument("--data", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--model", default="videoworld", help="preset that variants differ from")
    kinds = ("horizon", "labels", "book")
    parser.add_argument("--only", nargs="+", choices=kinds, default=list(kinds))
    parser.add_argument("--horizons", nargs="+", type=int, default=HORIZONS)
    parser.add_argument("--books", nargs="+", type=int, choices=BOOKS, default=list(BOOKS))
    parser.add_argument("--prefix", default="", help="of each variant's name")
    parser.add_argument("--episodes", type=int, default=50, help="of a category")
    parser.add_argument("--categories", nargs="+", default=rollouts.COUNTED)
    parser.add_argument("--chunk", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--again", action="store_true", help="measure existing rows again")
    parser.add_argument("--json", type=Path, default=videoworld.FILE)
    given = parser.parse_intermixed_args()
    for variant, settings in variants(given.only, given.horizons, given.books).items():
        name = given.prefix + variant
        run = given.folder / name.replace(", ", "-").replace(" ", "-")
        there = videoworld.find(("ablations", name), file=given.json) or {"categories": {}}
        if set(given.categories) <= set(there["categories"]) and not given.again:
            print(f"{name}: is there")
            continue
        train = [sys.executable, "-m", "latentplan.cli", "train", given.model, "--resume"]
        train += ["--data", given.data, "--run", str(run), "--device", given.device]
        train += ["--cache", str(given.folder / "stages"), *given.settings, *settings]
        print(f"{name}: {' '.join(train[2:])}", flush=True)
        subprocess.run(train, check=True)
        policy = videoworld_agent.Agent(videoworld_agent.load(str(run)), chunk=given.chunk)
        said = videoworld.about(str(run), given.chunk)
        said["settings"] = [*given.settings, *settings]
        videoworld.count(policy, said, where=("ablations", name), asked=given)


if __name__ == "__main__":
    main()
