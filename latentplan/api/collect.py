"""`latentplan.collect`: experience of an env, gathered into an episode store."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentplan import config, registry
from latentplan.api import stores
from latentplan.api.choice import Choice, NoConfig, Overrides, as_overrides, choose
from latentplan.errors import CheckpointError, ConfigError, Interrupted, check_range
from latentplan.protocols import Env, HasEpisodeLength, Policy
from latentplan.types import OnProgress, Progress, Spec

if TYPE_CHECKING:
    from latentplan.data.store import ZarrStore
    from latentplan.exploration.collect import Progress as Count
    from latentplan.exploration.recorder import Recipe


@dataclass(frozen=True)
class Collected:
    """An episode store after `collect`, and what the call added to it."""

    store: str  # path or URL, without a password
    episodes: int  # that the store holds
    transitions: int
    new_episodes: int  # that this call added
    new_transitions: int
    unstable: int  # attempts dropped because the physics diverged
    refused: float | None  # actions that the env did not do; None if it does not say
    seconds: float
    image_bytes: Mapping[str, float]  # on the disk, per image, by observation key
    address: str | Path = field(repr=False)  # path or URL as it was given, to open it

    def open(self) -> ZarrStore:
        """Return the store, open for reading."""
        from latentplan.data.store import ZarrStore

        return ZarrStore.open(self.address)


def collect(
    env: str | type[Env] | Env,
    *,
    out: str | Path,
    episodes: int,
    policy: str | Path | type[Policy] | Policy = "random",
    workers: int | None = None,
    seed: int = 0,
    ray: str | None = None,
    overrides: Overrides = (),
    on_progress: OnProgress | None = None,
) -> Collected:
    """Collect until the store `out` (a path or URL) holds `episodes`, and say what was added.

    An existing store of the same settings is continued. `env` and `policy` are names (presets or
    registered), classes or objects; `policy` may be a trained run (folder or shipped name), whose
    planner acts towards goals that the env draws, with noise. `workers` processes step the env (0:
    this one), or as many actors of the Ray cluster `ray` (HOST:PORT, auto or local). By default
    there is one a core, and this process alone for a class that another process cannot import, or
    an object. Sections of `overrides`: env, policy, collect. `on_progress` is called after every
    episode. Raises a LatentplanError before anything is written if something does not fit,
    Interrupted on Ctrl-C; what is done is kept.
    """
    from latentplan.exploration import cluster
    from latentplan.exploration.collect import Progress as Count
    from latentplan.exploration.collect import collect as record

    check_range("collect.episodes", episodes, 1)
    check_range("collect.seed", seed, 0)
    check_range("collect.workers", workers or 0, 0)
    chosen, acting = choose("env", env), _policy(policy)
    recipe, spec, settings = _recipe(chosen, acting, seed=seed, overrides=overrides)
    workers = _workers(workers, ray, chosen, acting)
    count, begun, interrupted = Count(), time.monotonic(), False
    with cluster.connected(ray, workers=workers) if ray is not None else nullcontext():

        def report(now: Count) -> None:
            nonlocal count
            count = now
            if on_progress is not None:
                figures = {"transitions": now.transitions, "unstable": now.unstable}
                done = before + now.episodes
                on_progress(Progress(f"collect {chosen.name}", "episodes", done, episodes, figures))

        with stores.filling(out, spec, settings) as store:
            before = len(store)
            try:
                report(count)
                record(store, recipe, episodes=episodes, workers=workers, ray=ray, report=report)
            except KeyboardInterrupt:
                interrupted = True
        found = _summary(store, out, count, time.monotonic() - begun)
    if interrupted:
        raise Interrupted(found)
    return found


def _policy(given: Any) -> Choice:
    """Return what a policy is given as: also a run, by its folder, file or shipped name."""
    known = {*registry.names("policy"), *config.presets().get("policy", ())}
    if not isinstance(given, str | Path) or given in known:
        return choose("policy", given)
    from latentplan.api.on_policy import OnPolicy
    from latentplan.training import checkpoint

    try:
        file = checkpoint.find(given)
    except CheckpointError:
        return choose("policy", str(given))  # MODULE:CLASS, or an error with the names
    run = {"run": str(given), "sha256": checkpoint.digest(file)}
    return Choice("policy", "on_policy", OnPolicy, values=run)


def _recipe(
    env: Choice, policy: Choice, *, seed: int, overrides: Overrides
) -> tuple[Recipe, Spec, dict[str, Any]]:
    """Return how episodes are made, their spec, and all settings that they depend on."""
    from latentplan.exploration.recorder import CollectConfig, Recipe

    known = isinstance(env.make, HasEpisodeLength)
    filled = config.load(
        {"env": env.config, "policy": policy.config, "collect": CollectConfig},
        preset={
            "env": env.values,
            "policy": policy.values,
            "collect": {"length": env.make.episode_length} if known else {},
        },
        overrides=as_overrides(overrides),
    )
    example = env.build(filled["env"])
    spec: Spec = example.data_spec
    if env.instance is None:
        example.close()
    policy.build(filled["policy"], spec)  # raises here, not in a worker
    recipe = Recipe(
        _maker(env),
        _maker(policy),
        env_config=filled["env"],
        policy_config=filled["policy"],
        config=filled["collect"],
        seed=seed,
    )
    settings = {
        "env": env.to_values(filled["env"]),
        "policy": policy.to_values(filled["policy"]),
        "collect": config.to_values(filled["collect"]),
        "seed": seed,
    }
    return recipe, spec, settings


def _maker(choice: Choice) -> Any:
    """Return what a recorder calls to make the part: the class itself, which can be pickled."""
    if choice.instance is None and choice.config is not NoConfig:
        return choice.make

    def make(*arguments: Any) -> Any:
        return choice.build(arguments[-1], *arguments[:-1])

    return make


def _workers(asked: int | None, ray: str | None, *choices: Choice) -> int:
    """Return the number of worker processes; 0 is this process."""
    local = [choice for choice in choices if not choice.importable()]
    if not local:
        return asked if asked is not None else os.cpu_count() or 1
    if asked or ray is not None:
        where = "the Ray cluster" if ray is not None else f"{asked} worker processes"
        raise ConfigError(
            f"collect.workers: {local[0].kind} {local[0].name} cannot be imported by {where}; "
            "put its class into a module of its own, or set workers=0"
        )
    return 0


def _summary(store: ZarrStore, out: str | Path, count: Count, seconds: float) -> Collected:
    held = stores.size(store)
    rows = held.episodes + held.transitions
    images = [key for key, array in store.spec.observation.items() if len(array.shape) == 3]
    return Collected(
        store=str(store.path),
        episodes=held.episodes,
        transitions=held.transitions,
        new_episodes=count.episodes,
        new_transitions=count.transitions,
        unstable=count.unstable,
        refused=count.refused,
        seconds=seconds,
        image_bytes={
            key: store.disk_bytes(f"observation/{key}") / rows for key in images if rows
        },
        address=out,
    )
