"""`latentplan.api.replay`: a recorded episode's actions, sent again through the safety filter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from latentplan import config
from latentplan.api import connection as links
from latentplan.api.choice import Overrides, as_overrides
from latentplan.api.connection import Connection
from latentplan.errors import StoreError, check_range

if TYPE_CHECKING:
    from latentplan.real_robot.motion.replay import ReplayResult


@dataclass(frozen=True)
class Replayed:
    """How near an arm came to a recorded episode."""

    played: ReplayResult
    seconds: float  # of the episode
    worst: Mapping[str, float]  # rad, the largest distance of each joint from the recording
    interventions: Mapping[str, int]  # of the safety filter, by kind


def replay(
    connection: Connection, data: str | Path, *, episode: int = 0, overrides: Overrides = ()
) -> Replayed:
    """Send the actions of an episode of the store `data` to an arm.

    Control and period are those of the episode. Sections of `overrides`: playing, and backend,
    safety, supervisor if there is a backend. Raises StoreError, before anything moves, if the
    episode does not fit the arm.
    """
    from latentplan.data.store import ZarrStore
    from latentplan.real_robot.motion.replay import Replay

    check_range("replay.episode", episode, 0)
    with ZarrStore.open(data) as store:
        if episode >= len(store):
            raise StoreError(
                f"replay.episode: {episode} is not there, {store.path} has {len(store)} episodes"
            )
        spec, recorded = store.spec, store.episode(episode)
    convention = spec.action.convention
    if convention is None or "q" not in spec.observation or spec.dt is None:
        raise StoreError(
            f"{store.path}: no recording of an arm's joints: it needs joint positions q, actions "
            "of the joints and their period; make one with `latentplan record`"
        )
    preset: dict[str, dict[str, object]] = {"safety": {"control": convention.control}}
    if connection.backend is not None and not connection.here:
        preset["backend"] = links.real_time(connection.backend)
    sections = links.sections(connection.backend)
    settings = config.load(
        sections | {"playing": Replay.Config},
        preset={name: values for name, values in preset.items() if name in sections},
        overrides=as_overrides(overrides),
    )
    with links.connected(replace(connection, settings=settings, period=spec.dt)) as arm:
        played = Replay(arm, connection.arm, settings["playing"]).play(recorded, spec=spec)
        counts = dict(arm.health().interventions)
        arm.stop("the replay is over")
        joints = arm.spec.joints
    worst = {n: float(e) for n, e in zip(joints, np.abs(played.error).max(0), strict=True)}
    return Replayed(played, played.actions * spec.dt, worst, counts)
