"""Measure the speed of collection, by processes and by Ray actors.

    python benchmarks/collecting.py --ray 2,4 --json benchmarks/collect.json
    python benchmarks/collecting.py --env rope engine=mujoco
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

from latentplan import config, registry
from latentplan.errors import LatentplanError, MissingDependency, check_range
from latentplan.files import replacing
from latentplan.protocols import RenderedEnv

if TYPE_CHECKING:
    from latentplan.exploration.collect import Progress
    from latentplan.exploration.recorder import Recipe

SETTLE = 8  # warm-up episodes per worker, in which processes start and queues fill
DRAWING = 1.0  # duration of the rendering measurement, s


@dataclass(frozen=True)
class Case:
    """One row: an env, an engine, and a number of workers."""

    env: str
    engine: str
    workers: int
    kind: str  # process or ray
    recipe: Recipe


@dataclass(frozen=True)
class Measured:
    """The result of one repeat of a case."""

    transitions_per_s: float
    overhead: float  # share of the workers' time outside of their envs
    unstable: int  # attempts dropped because the physics diverged


def run(
    *,
    env: str = "",
    workers: Sequence[int] = (1, 2),
    ray: Sequence[int] = (),
    episodes: int = 100,
    repeats: int = 3,
    seed: int = 0,
    out: str | None = None,
    overrides: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Print and return a row for each env, engine and number of workers; write them to `out`.

    Each repeat collects `episodes` into a new store, after `SETTLE` warm-up episodes per worker.
    `workers` are processes (1: this one), `ray` are actors of a local Ray. Rows hold the median of
    the repeats, and the smallest and largest rate; `images_per_s` is rendering alone, in one
    process. `env` is a name or preset ("": all envs, with every installed engine). Sections of
    `overrides`: env, collect.
    """
    from latentplan.commands.progress import track
    from latentplan.evaluation.provenance import provenance

    check_range("episodes", episodes, 1)
    check_range("repeats", repeats, 1)
    for option, numbers in (("workers", workers), ("ray", ray)):
        for number in numbers:
            check_range(option, number, 1)
    load = os.getloadavg()[0]
    counts = [("process", n) for n in workers] + [("ray", n) for n in ray]
    cases = [
        Case(name, engine, number, kind, recipe)
        for name in ([env] if env else sorted(registry.names("env")))
        for engine, recipe in _recipes(name, seed, overrides)
        for kind, number in counts
    ]
    drawn = {(case.env, case.engine): _images_per_s(case.recipe) for case in cases}
    measured: dict[int, list[Measured]] = {index: [] for index in range(len(cases))}
    with track(repeats * len(cases), "collecting", "runs") as bar:
        for _ in range(repeats):  # interleaved, so that other load affects all cases alike
            for index, case in enumerate(cases):
                measured[index].append(_measure(case, episodes))
                bar.advance()
    made_with = {**provenance(), "load_average_before": load}
    rows = [
        {
            "env": case.env,
            "engine": case.engine,
            "workers": case.workers,
            "kind": case.kind,
            "transitions_per_s": round(median(m.transitions_per_s for m in measured[index]), 1),
            "transitions_per_s_min_max": [
                round(f(m.transitions_per_s for m in measured[index]), 1) for f in (min, max)
            ],
            "images_per_s": round(drawn[case.env, case.engine]),
            "overhead": round(median(m.overhead for m in measured[index]), 3),
            "unstable": sum(m.unstable for m in measured[index]),
            "episodes": episodes,
            "repeats": repeats,
            "made_with": made_with,
        }
        for index, case in enumerate(cases)
    ]
    _print(rows)
    if out is not None:
        with replacing(Path(out)) as partial:
            partial.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return rows


def _recipes(name: str, seed: int, overrides: Sequence[str]) -> Iterator[tuple[str, Recipe]]:
    """Yield the recipe of random actions in an env for each installed engine."""
    from latentplan.exploration.recorder import CollectConfig, Recipe
    from latentplan.sim.deformable.engines.engine import ENGINES

    preset = config.resolve("env", name)
    env_class = registry.get("env", preset.base)
    given = any(override.startswith(("engine=", "env.engine=")) for override in overrides)
    engines = [""] if given else [*ENGINES.get(preset.base, {"": ""})]
    for engine in engines:
        chosen = config.load(
            {"env": env_class.Config, "collect": CollectConfig},
            preset={"env": preset.values},
            overrides=[*overrides, f"env.engine={engine}"] if engine else overrides,
        )
        try:
            example = env_class(chosen["env"])
        except MissingDependency as e:
            print(f"{name}, {engine}: left out ({e})")
            continue
        picks = example.data_spec.pick is not None
        example.close()
        policy = registry.get("policy", "random" if picks else "box")
        yield (
            config.to_values(chosen["env"]).get("engine", ""),
            Recipe(
                env_class,
                policy,
                env_config=chosen["env"],
                policy_config=policy.Config(),
                config=chosen["collect"],
                seed=seed,
            ),
        )


def _measure(case: Case, episodes: int) -> Measured:
    from latentplan.data.store import ZarrStore
    from latentplan.exploration.collect import collect

    seen: list[tuple[float, Progress]] = []
    settle = SETTLE * case.workers
    spec = case.recipe.env(case.recipe.env_config).data_spec
    with (
        tempfile.TemporaryDirectory() as folder,
        ZarrStore.create(Path(folder) / "bench.zarr", spec) as store,
    ):
        collect(
            store,
            case.recipe,
            episodes=settle + episodes,
            workers=case.workers,
            ray="local" if case.kind == "ray" else None,
            report=lambda progress: seen.append((perf_counter(), progress)),
        )
    (start, before), (stop, after) = seen[settle - 1], seen[-1]
    seconds = stop - start
    in_env = after.env_seconds - before.env_seconds
    return Measured(
        transitions_per_s=(after.transitions - before.transitions) / seconds,
        overhead=1 - in_env / (seconds * case.workers),
        unstable=after.unstable,
    )


def _images_per_s(recipe: Recipe) -> float:
    """Return the number of images that an env renders per second; 0 if it has no camera."""
    env: Any = recipe.env(recipe.env_config)
    try:
        env.reset(seed=recipe.seed)
        if not isinstance(env, RenderedEnv):
            return 0.0
        env.render()
        start, count = perf_counter(), 0
        while perf_counter() - start < DRAWING:
            env.render()
            count += 1
        return count / (perf_counter() - start)
    finally:
        env.close()


def _print(rows: Sequence[dict[str, Any]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    if not rows:
        raise LatentplanError("collecting: no env could be built; see above")
    shown = ["env", "engine", "workers", "kind", "transitions_per_s", "images_per_s"]
    shown += ["overhead", "unstable"]
    table = Table(*(name.replace("_", " ") for name in shown), box=SIMPLE_HEAD)
    for row in rows:
        table.add_row(*(str(row[name]) for name in shown))
    Console().print(table)


def numbers(text: str) -> list[int]:
    """Return the integers of a text such as 64,512."""
    return [int(each) for each in text.split(",") if each]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the cases of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--env", default="", help="an env or a preset of one; default: all")
    parser.add_argument("--workers", type=numbers, default=[1, 2], help="processes, with commas")
    parser.add_argument("--ray", type=numbers, default=[], help="actors of a local Ray")
    parser.add_argument("--episodes", type=int, default=100, help="timed ones, of each repeat")
    parser.add_argument("--repeats", type=int, default=3, help="of each row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", dest="out", help="file for the rows, as a JSON list")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    run(**vars(parser.parse_intermixed_args(argv)))


if __name__ == "__main__":
    main()
