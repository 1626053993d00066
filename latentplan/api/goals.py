"""Goals taken from recorded episodes."""

from __future__ import annotations

import re
from pathlib import Path

from latentplan.data.store import ZarrStore
from latentplan.errors import ConfigError, ShapeError, StoreError
from latentplan.types import Goal, Observation, Spec

PLACE = re.compile(r"(?P<data>.+\.zarr):(?P<episode>-?[0-9]+)(:(?P<step>-?[0-9]+))?")


def goal_of(data: str | Path, *, episode: int, step: int = -1) -> Goal:
    """Return a recorded observation as a goal, with the task it belongs to.

    It is that after `step` actions of an episode of `data`, by default the last; negative numbers
    count from the end. Its text is the task, or else the words, of the episode's last label that
    covers the step, if there is one. Raises StoreError for an episode or a step that is not there.
    """
    with ZarrStore.open(data) as store:
        if not -len(store) <= episode < len(store):
            raise StoreError(
                f"goal_of.episode: found {episode}, {store.path} has the episodes 0 to "
                f"{len(store) - 1}"
            )
        found, public = store.episode(episode), {*store.spec.observation} - {*store.spec.privileged}
    rows = len(found.actions) + 1
    if not -rows <= step < rows:
        raise StoreError(
            f"goal_of.step: found {step}, episode {episode} of {data} has the steps 0 to {rows - 1}"
        )
    at = step % rows
    covers = [each for each in found.labels if each.start <= at <= each.stop % rows]
    texts = [each.task or each.text for each in covers]
    seen = {key: rows[at] for key, rows in found.observations.items() if key in public}
    return Goal(seen, text=texts[-1] if texts else "")


def of_place(text: str) -> Goal | None:
    """Return the goal at a place DATA.zarr:EPISODE[:STEP]; None for another text.

    Raises ConfigError for a store without a number of an episode, StoreError as `goal_of` does.
    """
    found = PLACE.fullmatch(text)
    if found is None:
        if text.rstrip("/").endswith(".zarr"):
            raise ConfigError(f"robot.goal: found {text!r}, need DATA.zarr:EPISODE[:STEP]")
        return None
    step = found["step"]
    at = -1 if step is None else int(step)
    return goal_of(found["data"], episode=int(found["episode"]), step=at)


def read_by(spec: Spec, goal: Goal) -> Observation:
    """Return what a model with a spec reads of a goal; ShapeError if an observation is missing."""
    seen, wanted = dict(goal.observation or {}), {*spec.observation} - {*spec.privileged}
    for key in sorted(wanted):
        found, need = seen.get(key), spec.observation[key].shape
        if found is None or found.shape != need:
            had = ", ".join(f"{name} {x.shape}" for name, x in sorted(seen.items()))
            raise ShapeError(f"robot.goal: found {had}, the model needs {key} {need}")
    return {key: seen[key] for key in wanted}
