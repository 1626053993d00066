"""Measure the benefit of generated codes as candidates of CEM.

    python benchmarks/videoworld_proposals.py RUN PROPOSER [--env E] [--candidates 32 16]
        [--episodes 50] [KEY=VALUE ...]

CEM plans with the model RUN: with the full number of candidates, with half of them, and with half
of them including proposals from PROPOSER, a run of VideoWorld, which may be RUN itself. All rows
have the same overrides (`task=open_drawer`, `horizon=4`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from latentplan.api.evaluate import evaluate
from latentplan.errors import LatentplanError
from latentplan.evaluation.provenance import provenance
from latentplan.files import replacing

KEPT = (
    *("success", "success_ci95", "progress", "progress_ci95"),
    *("final", "best", "act_ms_p50", "act_ms_p90"),
)


def row(
    run: str,
    *,
    candidates: int,
    proposer: str = "",
    env: str | None,
    episodes: int,
    seed: int,
    overrides: Sequence[str],
) -> dict[str, Any]:
    """Return the metrics of one setting; the same seed has the same starts and goals."""
    more = [f"planner.candidates={candidates}", f"planner.elites={max(2, candidates // 8)}"]
    if proposer:
        more.append("mpc.propose=true" if proposer == run else f"mpc.proposer.run={proposer}")
    with TemporaryDirectory() as folder:
        metrics = evaluate(
            run,
            env=env,
            episodes=episodes,
            seed=seed,
            planner="cem",
            out=folder,
            overrides=[*overrides, *more, "evaluation.states=0"],
        ).metrics.to_json()
    return {"candidates": candidates, "proposer": proposer} | {k: metrics[k] for k in KEPT}


def main() -> None:
    """Print the rows, and write them as JSON if a file is named."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run")
    parser.add_argument("proposer")
    parser.add_argument("--env")
    parser.add_argument("--candidates", type=int, nargs="+", default=[256])
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    rows = []
    settings = dict.fromkeys(  # half of one number may equal another
        each
        for whole in options.candidates
        for each in ((whole, ""), (whole // 2, ""), (whole // 2, options.proposer))
    )
    for candidates, proposer in settings:
        rows.append(
            row(
                options.run,
                candidates=candidates,
                proposer=proposer,
                env=options.env,
                episodes=options.episodes,
                seed=options.seed,
                overrides=options.overrides,
            )
        )
        print(json.dumps(rows[-1]), flush=True)
    if options.json:
        report = {**provenance(), "run": options.run, "episodes": options.episodes, "rows": rows}
        report |= {"env": options.env, "seed": options.seed, "overrides": options.overrides}
        with replacing(options.json) as partial:
            partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except LatentplanError as e:
        raise SystemExit(f"videoworld_proposals: {e}") from None
