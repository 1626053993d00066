"""Train and measure VideoWorld with different numbers of codes and codebook sizes.

    python benchmarks/videoworld_ablations.py --data demos.zarr --folder runs/ablations
        [--model PRESET] [--only horizon labels book] [--episodes 50] [--prefix "fine, "]
        [training.transformer.steps=...]

Each variant is a run of `latentplan train --resume` in its own folder; stages with equal settings
are trained once, in FOLDER/stages. `horizon` trains one latent dynamics model of the longest
horizon, and transformers on its first H codes; code h depends on frames t to t + h alone, so the
codes are the same for all H. H = 0 is the transformer on video alone. `labels` trains the inverse
dynamics of the same horizons on the actions of a tenth of the episodes. Existing runs and rows are
kept.
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
BOOKS = {9: "[3,3]", 64: "[4,4,4]", 1000: "[8,5,5,5]"}  # FSQ levels by number of codes


def variants(only: list[str], horizons: list[int], books: list[int]) -> dict[str, list[str]]:
    """Return the settings of each variant by name."""
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
    """Train and measure each variant."""
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
    options = parser.parse_intermixed_args()
    for variant, settings in variants(options.only, options.horizons, options.books).items():
        name = options.prefix + variant
        run = options.folder / name.replace(", ", "-").replace(" ", "-")
        row = videoworld.find(("ablations", name), file=options.json) or {"categories": {}}
        if set(options.categories) <= set(row["categories"]) and not options.again:
            print(f"{name}: exists")
            continue
        train = [sys.executable, "-m", "latentplan", "train", options.model, "--resume"]
        train += ["--data", options.data, "--run", str(run), "--device", options.device]
        train += ["--cache", str(options.folder / "stages"), *options.settings, *settings]
        print(f"{name}: {' '.join(train[2:])}", flush=True)
        subprocess.run(train, check=True)
        policy = videoworld_agent.Agent(videoworld_agent.load(str(run)), chunk=options.chunk)
        identity = videoworld.about(str(run), options.chunk)
        identity["settings"] = [*options.settings, *settings]
        videoworld.count(policy, identity, keys=("ablations", name), options=options)


if __name__ == "__main__":
    main()
