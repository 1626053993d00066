"""`latentplan collect`: experience of an env, gathered into an episode store."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from latentplan import config, registry
from latentplan.errors import check_range
from latentplan.protocols import HasEpisodeLength

if TYPE_CHECKING:
    from latentplan.data.store import ZarrStore
    from latentplan.exploration.collect import Progress


def run(
    env: str,
    *,
    episodes: int,
    out: str | Path,
    workers: int | None = None,
    seed: int = 0,
    explorer: str = "random",
    ray: str | None = None,
    overrides: Sequence[str] = (),
) -> None:
    """Collect until the store `out` (a path or URL) holds `episodes`, and print what was done.

    Goes on where an existing store of the same settings ends. `env` and `explorer` are presets or
    registry names, `workers` processes (None: one a core) step the env, or as many actors of the
    Ray cluster `ray`. Sections of `overrides`: env, explorer, collect.
    """
    from latentplan.commands.progress import track
    from latentplan.data.location import locate
    from latentplan.data.store import ZarrStore, check_same
    from latentplan.exploration import cluster
    from latentplan.exploration.collect import Progress, collect
    from latentplan.exploration.recorder import CollectConfig, Recipe

    check_range("--episodes", episodes, 1)
    check_range("--seed", seed, 0)
    workers = workers if workers is not None else os.cpu_count() or 1
    check_range("--workers", workers, 0)
    env_preset, explorer_preset = config.resolve("env", env), config.resolve("explorer", explorer)
    env_class = registry.get("env", env_preset.base)
    explorer_class = registry.get("explorer", explorer_preset.base)
    chosen = config.load(
        {
            "env": env_class.Config,
            "explorer": explorer_class.Config,
            "collect": CollectConfig,
        },
        preset={
            "env": env_preset.values,
            "explorer": explorer_preset.values,
            "collect": (
                {"length": env_class.episode_length}
                if isinstance(env_class, HasEpisodeLength)
                else {}
            ),
        },
        overrides=overrides,
    )
    recipe = Recipe(
        env_class,
        explorer_class,
        env_config=chosen["env"],
        explorer_config=chosen["explorer"],
        config=chosen["collect"],
        seed=seed,
    )
    settings = {
        "env": {"name": env_preset.base, **config.to_values(chosen["env"])},
        "explorer": {"name": explorer_preset.base, **config.to_values(chosen["explorer"])},
        "collect": config.to_values(chosen["collect"]),
        "seed": seed,
    }

    example = env_class(chosen["env"])
    spec = example.data_spec
    example.close()
    explorer_class(spec, chosen["explorer"])  # says here, and not in a worker, what it cannot do
    with cluster.connected(ray, workers=workers) if ray is not None else nullcontext():
        if locate(out).exists():
            store = ZarrStore.open(out, "a")
        else:
            store = ZarrStore.create(out, spec, settings=settings)
        with store:
            advice = "use the same settings to go on, or another --out"
            check_same(f"{out}: settings", store.settings, settings, advice=advice)
            check_same(f"{out}: spec", store.spec.to_json(), spec.to_json(), advice=advice)
            started, done = time.monotonic(), Progress()
            try:
                with track(episodes, f"collect {env}", "episodes", done=len(store)) as bar:

                    def report(progress: Progress) -> None:
                        nonlocal done
                        done = progress
                        bar.advance(transitions=done.transitions, unstable=done.unstable)

                    collect(
                        store, recipe, episodes=episodes, workers=workers, ray=ray, report=report
                    )
            finally:  # Ctrl-C and a dead worker keep what was done, so say what that is
                seconds = time.monotonic() - started
                store.close()
                print(_summary(store, done, seconds))


def _summary(store: ZarrStore, done: Progress, seconds: float) -> str:
    rows = int(store.ends[-1]) if len(store) else 0
    parts = [
        f"{store.path}: {len(store)} episodes, {rows - len(store)} transitions",
        f"new {done.episodes} episodes, {done.transitions} transitions "
        f"at {done.transitions / max(seconds, 1e-9):.1f}/s",
        f"{done.unstable} unstable tries dropped",
    ]
    if done.refused is not None:
        parts.append(f"{done.refused:.0f} actions refused")
    pictures = [key for key, a in store.spec.observation.items() if len(a.shape) == 3]
    parts += [
        f"{store.disk_bytes(f'observation/{key}') / rows:.0f} bytes a picture {key}"
        for key in pictures
        if rows
    ]
    return "; ".join(parts)
