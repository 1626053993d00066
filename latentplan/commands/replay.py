"""`latentplan replay`: a recorded episode's actions, played back through the safety filter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from latentplan import config
from latentplan.commands import connect
from latentplan.errors import StoreError, check_range

if TYPE_CHECKING:
    from latentplan.real_robot.motion.replay import Played


def run(
    data: str | Path,
    *,
    episode: int = 0,
    backend: str | None = None,
    robot: str = "panda",
    address: str | None = None,
    python: str | None = None,
    reset: bool = False,
    overrides: Sequence[str] = (),
) -> Played:
    """Play an episode of the store `data`, print how near the arm came to it, and return that.

    The arm is reached as `robot.run` says; the control and the period are those of the episode.
    Sections of `overrides`: playing, and backend, safety, supervisor where the arm is driven from
    here. Raises StoreError where the episode does not fit the arm; nothing has moved then.
    """
    from latentplan.data.store import ZarrStore
    from latentplan.real_robot.motion.replay import Playing

    check_range("--episode", episode, 0)
    way = connect.way(
        backend=backend, robot=robot, address=address, python=python, reset=reset
    )
    with ZarrStore.open(data) as store:
        if episode >= len(store):
            raise StoreError(f"--episode: {episode} is not there, {data} has {len(store)}")
        spec, recorded = store.spec, store.episode(episode)
    convention = spec.action.convention
    if convention is None or "q" not in spec.observation or spec.dt is None:
        raise StoreError(
            f"{data}: no recording of an arm's joints: it needs joint positions q, actions of the "
            "joints and their period; make one with latentplan record"
        )
    preset: dict[str, dict[str, object]] = {"safety": {"control": convention.control}}
    if way.backend is not None and not way.here:
        preset["backend"] = connect.real_time(way.backend)
    sections = connect.sections(way.backend)
    settings = config.load(
        sections | {"playing": Playing.Config},
        preset={name: values for name, values in preset.items() if name in sections},
        overrides=overrides,
    )
    with connect.connected(replace(way, settings=settings, period=spec.dt)) as arm:
        played = Playing(arm, way.arm, settings["playing"]).play(recorded, spec=spec)
        counts = arm.health().interventions
        arm.stop("the replay is over")
        joints = arm.spec.joints
    worst = np.abs(played.error).max(0)
    print(f"played {played.actions} actions, {played.actions * spec.dt:.1f} s")
    print(f"joints: {played.mean:.4f} rad away on the mean, {played.worst:.4f} at most")
    print("  " + ", ".join(f"{n} {e:.4f}" for n, e in zip(joints, worst, strict=True)))
    kinds = ", ".join(f"{kind} {n}" for kind, n in sorted(counts.items()))
    print(f"interventions {sum(counts.values())}" + (f" ({kinds})" if kinds else ""))
    return played
