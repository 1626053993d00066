"""`latentplan.api.record`: what an arm does, watched at a node or driven here, into a store."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentplan.api import connection as links
from latentplan.api import stores
from latentplan.api.choice import Overrides, as_overrides
from latentplan.api.robot import check_planner
from latentplan.errors import ConfigError, Interrupted, RobotError, check_range
from latentplan.urls import public

if TYPE_CHECKING:
    from latentplan.data.store import ZarrStore
    from latentplan.types import Episode, Spec

    Found = tuple[Spec, dict[str, Any], Episode]

ADVICE = "record with the same arm and settings, or into another store"
STRETCH = 600  # actions of a watched episode, at most


@dataclass(frozen=True)
class Recorded:
    """A store of an arm, and what the call added to it."""

    store: str
    episodes: int  # that the store holds
    new_episodes: int
    new_actions: int


def record(
    out: str | Path,
    *,
    address: str | None = None,
    backend: str | None = None,
    robot: str = "panda",
    run: str | None = None,
    task: str | None = None,
    episodes: int = 1,
    steps: int | None = None,
    planner: str | None = None,
    seed: int = 0,
    overrides: Overrides = (),
    on_episode: Callable[[int, int], None] | None = None,
) -> Recorded:
    """Append `episodes` of an arm to the store `out`, with the actions that were sent.

    With an `address` a node is watched, which another process plans for: an episode is a stretch
    in which the arm is armed. Without, a simulated arm is driven here by a `run` or a `task`, see
    `robot.drive`. `on_episode` is called with the number of each episode and of its actions.
    """
    check_range("record.episodes", episodes, 1)
    if steps is not None:
        check_range("record.steps", steps, 1)
    given = as_overrides(overrides)
    if address is not None:
        if backend is not None or run is not None or task is not None or given:
            raise ConfigError(
                "record.address: the arm of a node is only watched; give no backend, run, task or "
                "settings, and drive the arm with `latentplan robot`"
            )
        found = _watched(address, episodes=episodes, steps=steps or STRETCH)
    else:
        _check_driven(backend, run, task)
        found = _driven(robot, run, episodes, steps, planner, seed, given)
    done = actions = 0
    interrupted = False
    store: ZarrStore | None = None
    try:
        with closing(found):
            for spec, settings, episode in found:
                store = store or stores.open_or_create(out, spec, settings, advice=ADVICE)
                store.append(episode)
                done, actions = done + 1, actions + len(episode)
                if on_episode is not None:
                    on_episode(len(store) - 1, len(episode))
    except KeyboardInterrupt:
        if store is None:
            raise
        interrupted = True
    finally:
        if store is not None:
            store.close()
    held = 0 if store is None else len(store)
    result = Recorded(public(out), held, done, actions)
    if interrupted:
        raise Interrupted(result)
    return result


def _check_driven(backend: str | None, run: str | None, task: str | None) -> None:
    """Raise ConfigError unless the arm is simulated, and one of a run and a task plans."""
    if backend not in (None, "sim"):
        raise ConfigError(
            f"record.backend: found {backend!r}; in one process there is sim alone; start a "
            "node with `latentplan robot`, and record with its address"
        )
    check_planner(run, task)


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
    episodes: int,
    steps: int | None,
    planner: str | None,
    seed: int,
    overrides: list[str],
) -> Generator[Found, None, None]:
    """Yield the same of a simulated arm that is driven here."""
    from latentplan.api.robot_choice import choose
    from latentplan.real_robot.loop.recording import RecordedRobot

    chosen = choose(
        links.connection("sim", robot=robot),
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
            done = chosen.episode(arm, index)
            if done.fault:
                raise RobotError(done.fault)
            info = {} if done.success is None else {"success": float(done.success)}
            yield arm.spec.data, settings, arm.episode(info=info)
