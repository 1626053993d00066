"""robomimic's HDF5 files as episodes; also LIBERO's and MimicGen's, which have the same layout.

    FILE.hdf5
      data/              attributes: env_args, as JSON
        demo_N/          attributes: ep_meta, as JSON, in newer files
          actions, rewards, dones      (L, ...)
          obs/<key>, next_obs/<key>    (L, ...)
      mask/<filter>      names of demos, (n,) bytes
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latentplan import config as settings
from latentplan.data import images
from latentplan.data.sources import (
    hdf5,
    hdf5_episodes,
    observation_keys,
    robosuite_actions,
)
from latentplan.data.sources.floats import float32
from latentplan.errors import ConfigError, SourceError, unknown
from latentplan.types import ActionSpec, Array, ArraySpec, Episode, Label, Spec

DEMO = re.compile(r"demo_[0-9]{1,9}")
TRUTH = ("object", "object-state")  # robosuite's state of its objects: simulator truth


class Robomimic:
    """A Source of the demos in one file, in the order of their numbers (demo_9 before demo_10).

    The last row of `next_obs`, if there is one, is the episode's last observation. Without it the
    last action has no next observation and is left out. An episode is terminated if its last
    `dones` is set; robomimic sets it at success, at the end of a demo, or both. Missing rewards
    are zero. `object` is simulator truth, so it is privileged. Observations in nested groups, as in
    Isaac Lab's files, are called `group.name`.

    The first demo that can be read determines the observations and the size of an action. A demo
    without them, or without actions, raises when it is read.
    """

    @dataclass(frozen=True)
    class Config:
        """The demos and the actions that are read, and the orientation of images."""

        filter: str = ""  # name of a mask, such as train or 20_percent; none: every demo
        actions: str = "actions"  # or another array of a demo: actions_abs, action_dict/abs_pos
        flip: bool = False  # flip rows: robosuite's own and LIBERO's images begin at the bottom

    def __init__(
        self,
        path: Path | str,
        config: Config | None = None,
        *,
        keys: Sequence[str] | None = None,
    ) -> None:
        """Find the demos in the file at `path`; SourceError if it has none to read."""
        self.path, self.config = Path(path), config or self.Config()
        self.settings: dict[str, Any] = {
            "format": "robomimic",
            **settings.to_values(self.config),
        }
        with hdf5.opened(self.path) as file:
            self.demos = self._find(file)
            data = file.group("data")
            self._task = _language(data.mapping("problem_info"))
            arrays, low, high = hdf5_episodes.scan(
                data,
                self.demos,
                actions=self._actions,
                observed=lambda demo, actions: _arrays(demo, keys, length=len(actions)),
            )
            reasons = {key: array.unfit for key, array in arrays.items()}
            names, self.notes = observation_keys.storable(reasons, keys)
            if not names:
                raise SourceError(f"{self.path}: no observation can be read: {self.notes[0]}")
            observation = {key: arrays[key].row() for key in names}
            arguments = data.mapping("env_args")
        if self.config.flip and not any(len(a.shape) == 3 for a in observation.values()):
            raise ConfigError(f"Robomimic.flip: none of {', '.join(names)} is an image to flip")
        self.spec = self._spec(observation, low, high, arguments=arguments)

    def __len__(self) -> int:
        """Return the number of demos."""
        return len(self.demos)

    def episode(self, index: int) -> Episode:
        """Return one demo as an episode; SourceError if it is damaged or unexpected."""
        name = self.demos[index]
        with hdf5.opened(self.path) as file:
            demo = file.group("data").group(name)
            actions = self._actions(demo, size=self.spec.action.size)
            length = len(actions)
            observations = {
                key: self._observed(demo, key, length=length) for key in self.spec.observation
            }
            rewards = _numbers(demo, "rewards", length)
            done = bool(_numbers(demo, "dones", length)[-1])
            text = _language(demo.mapping("ep_meta")) or self._task
        kept = len(next(iter(observations.values()))) - 1  # L, or L - 1 without next_obs
        if kept < 1:
            raise SourceError(f"{self.path}: {name} has a single observation, and no next_obs")
        terminated = done and kept == length
        return Episode(
            observations=observations,
            actions=actions[:kept],
            rewards=rewards[:kept],
            terminated=terminated,
            truncated=not terminated,
            info={"demo": float(name.removeprefix("demo_"))},
            labels=(Label(text),) if text else (),
        )

    def _find(self, file: hdf5.Group) -> list[str]:
        names = file.group("data").names() if "data" in file.names() else []
        names = [n for n in names if DEMO.fullmatch(n)]
        if not names:
            raise SourceError(f"{self.path}: has no data/demo_N; not a robomimic file")
        chosen = self.config.filter
        if chosen:
            masks = file.group("mask").names() if "mask" in file.names() else []
            if chosen not in masks:
                hint = unknown("mask", chosen, masks) if masks else "the file has no masks"
                raise SourceError(f"{self.path}: Robomimic.filter: {hint}")
            mask = file.group("mask").find(chosen)
            wanted = set(mask.texts()) if isinstance(mask, hdf5.Data) else set()
            missing = sorted(wanted - set(names))
            if missing or not wanted:
                found = f"names {missing[0]}, which is not there" if missing else "names no demo"
                raise SourceError(f"{self.path}: mask/{chosen} {found}")
            names = [n for n in names if n in wanted]
        return sorted(names, key=lambda n: int(n[5:]))

    def _actions(self, demo: hdf5.Group, *, size: int | None = None) -> Array:
        """Return a demo's actions (L, A) float32; SourceError if there are none, or not `size`."""
        array = demo.array(self.config.actions)
        values = float32(array.read())
        if values.ndim != 2 or not len(values) or size not in (None, values.shape[1]):
            raise SourceError(
                f"{array.where}: has shape {values.shape}, need (L >= 1, {size or 'A'})"
            )
        return values

    def _spec(
        self,
        observation: dict[str, ArraySpec],
        low: Array,
        high: Array,
        *,
        arguments: Mapping[str, Any],
    ) -> Spec:
        made = robosuite_actions.Described()
        if self.config.actions == "actions":  # that the controller takes
            made = robosuite_actions.describe(arguments, len(low))
        if made.normalised:
            low, high = np.fmin(low, -1), np.fmax(high, 1)
        frequency = _number(arguments.get("env_kwargs"), "control_freq")
        return Spec(
            observation=observation,
            action=ActionSpec(
                tuple(low.tolist()), tuple(high.tolist()), made.meaning, made.convention
            ),
            env="",
            privileged=tuple(k for k in TRUTH if k in observation),
            dt=1 / frequency if frequency else None,
        )

    def _observed(self, demo: hdf5.Group, key: str, *, length: int) -> Array:
        """Return the rows (L + 1, ...) of an observation, or (L, ...) without next_obs."""
        spec, parts = self.spec.observation[key], []
        for name in ("obs", "next_obs"):
            if name == "next_obs" and name not in demo.names():
                continue
            array = demo.group(name).dotted(key)
            if len(array) != length:
                raise SourceError(f"{array.where} has {len(array)} rows for {length} actions")
            parts.append(array.read(spec))
        values = parts[0] if len(parts) == 1 else np.concatenate([parts[0], parts[1][-1:]])
        if not self.config.flip or len(spec.shape) != 3:  # colours, or depth with one channel
            return values
        return values[:, :, ::-1] if images.channels_first(spec.shape) else values[:, ::-1]


def _arrays(demo: hdf5.Group, keys: Sequence[str] | None, *, length: int) -> dict[str, hdf5.Data]:
    """Return the arrays of a demo's observations by name.

    Raises SourceError if there are none, or one of `keys` has not a row for each action.
    """
    arrays = demo.group("obs").arrays() if "obs" in demo.names() else {}
    if not arrays:
        raise SourceError(
            f"{demo.where}: has states and actions, but no observations; render them: "
            f"python -m robomimic.scripts.dataset_states_to_obs --dataset {demo.path} "
            "--output_name image.hdf5 --done_mode 2 --camera_names agentview (a file that "
            "robosuite itself recorded goes through robomimic.scripts.conversion.convert_robosuite "
            "before)"
        )
    for key, array in arrays.items():
        asked = keys is None or key in keys
        if asked and not array.refused and not array.unfit and len(array) != length:
            raise SourceError(f"{array.where} has {len(array)} rows for {length} actions")
    return arrays


def _numbers(demo: hdf5.Group, name: str, length: int) -> Array:
    """Return (L,) float32, zeros if the demo has none."""
    if name not in demo.names():
        return np.zeros(length, np.float32)
    array = demo.array(name)
    values = float32(array.read()).reshape(-1)
    if len(values) != length:
        raise SourceError(f"{array.where} has {len(values)} numbers for {length} actions")
    return values


def _number(values: Any, name: str) -> float | None:
    found = values.get(name) if isinstance(values, Mapping) else None
    return float(found) if isinstance(found, int | float) and 1e-6 < found < 1e6 else None


def _language(values: dict[str, Any]) -> str:
    """Return the sentence that MimicGen (`lang`) or LIBERO (`language_instruction`) has."""
    found = values.get("lang") or values.get("language_instruction") or ""
    text = "".join(map(str, found)) if isinstance(found, list) else str(found)
    return text.strip().strip('"')
