"""`latentplan record`: what an arm does, seen from beside a node or driven here, into a store."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentplan.commands import connect
from latentplan.errors import ConfigError, RobotError, check_range

if TYPE_CHECKING:
    from latentplan.data.store import ZarrStore
    from latentplan.types import Episode, Spec

    Found = tuple[Spec, dict[str, Any], Episode]


def run(
    *,
    out: str | Path,
    backend: str | None = None,
    robot: str = "panda",
    run: str | None = None,
    task: str | None = None,
    episodes: int = 1,
    steps: int | None = None,
    address: str | None = None,
    planner: str | None = None,
    seed: int = 0,
    overrides: Sequence[str] = (),
) -> None:
    """Append `episodes` of an arm to the store `out`, and print what was done.

    With `address` it watches a node, which somebody else plans for: an episode is a stretch in
    which the arm is armed. Without, a simulated arm is driven here by a `run` or a `task`, see
    `robot.run`. Actions are what was really sent.
    """
    check_range("--episodes", episodes, 1)
    if steps is not None:
        check_range("--steps", steps, 1)
    if address is not None:
        if backend is not None or run is not None or task is not None or overrides:
            raise ConfigError(
                "--address: a node's arm is only watched; leave out --backend, --run, --task and "
                "settings, and start who plans by latentplan robot"
            )
        found = _watched(address, episodes=episodes, steps=steps or 600)
    else:
        if backend not in (None, "sim"):
            raise ConfigError(
                f"--backend {backend}: start it by latentplan robot --address HOST:PORT, and "
                "record with that --address; in one process there is sim alone"
            )
        found = _driven(robot, run, task, episodes, steps, planner, seed, overrides)
    done = actions = 0
    store: ZarrStore | None = None
    try:
        with closing(found):
            for spec, settings, episode in found:
                store = store or _open(out, spec, settings)
                store.append(episode)
                done, actions = done + 1, actions + len(episode)
                print(f"episode {len(store) - 1}: {len(episode)} actions", flush=True)
    finally:
        if store is not None:
            store.close()
            print(f"{out}: {len(store)} episodes; new {done} episodes, {actions} actions")


def _watched(address: str, *, episodes: int, steps: int) -> Generator[Found, None, None]:
    """Yield spec, settings and episode of what a node's planner does."""
    from latentplan.real_robot.link.remote import Watcher
    from latentplan.real_robot.loop.node_process import parse_address
    from latentplan.real_robot.loop.recording import watch

    with Watcher(parse_address(address)) as watcher:
        spec = watcher.spec
        settings = {"robot": spec.name, "joints": list(spec.joints)}
        for index, episode in enumerate(watch(watcher, steps=steps), 1):
            yield spec.data, settings, episode
            if index == episodes:
                return


def _driven(
    robot: str,
    run: str | None,
    task: str | None,
    episodes: int,
    steps: int | None,
    planner: str | None,
    seed: int,
    overrides: Sequence[str],
) -> Generator[Found, None, None]:
    """Yield the same of a simulated arm that is driven here."""
    from latentplan.commands import robot_episodes
    from latentplan.commands.robot import check_planner
    from latentplan.real_robot.loop.recording import RecordedRobot

    check_planner(run, task)
    chosen = robot_episodes.choose(
        connect.way(backend="sim", robot=robot, address=None),
        run=run,
        steps=steps,
        goal=None,
        planner=planner,
        objective="goal",
        seed=seed,
        device="cpu",
        overrides=overrides,
    )
    with chosen.connected(make=RecordedRobot) as arm:
        assert isinstance(arm, RecordedRobot)
        settings = {"robot": arm.spec.name, "joints": list(arm.spec.joints)}
        for index in range(episodes):
            arm.begin()
            record = chosen.episode(arm, index)
            if record.trip:
                raise RobotError(record.trip)
            info = {} if record.success is None else {"success": float(record.success)}
            yield arm.spec.data, settings, arm.episode(info=info)


def _open(out: str | Path, spec: Spec, settings: dict[str, Any]) -> ZarrStore:
    """Return the store to append to: a new one, or one of the same arm that goes on."""
    from latentplan.data.location import locate
    from latentplan.data.store import ZarrStore, check_same

    if not locate(out).exists():
        return ZarrStore.create(out, spec, settings=settings)
    store = ZarrStore.open(out, "a")
    advice = "record with the same arm and settings, or into another --out"
    check_same(f"{out}: settings", store.settings, settings, advice=advice)
    check_same(f"{out}: spec", store.spec.to_json(), spec.to_json(), advice=advice)
    return store
