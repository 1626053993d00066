"""robomimic's HDF5 files as episodes; also LIBERO's and MimicGen's, which have the same layout.

    FILE.hdf5
      data/              attributes: env_args, as JSON
        demo_N/          attributes: ep_meta, as JSON, in newer files
          actions, rewards, dones      (L, ...)
          obs/<key>, next_obs/<key>    (L, ...)
      mask/<filter>      names of demos, (n,) bytes
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latentplan import config as settings
from latentplan.data import images
from latentplan.data.sources import hdf5, robosuite_actions
from latentplan.errors import SourceError, unknown
from latentplan.types import ActionSpec, Array, Episode, Label, Spec

TRUTH = ("object", "object-state")  # robosuite's state of its objects: simulator truth


class Robomimic:
    """A Source of the demos in one file, in the order of their numbers (demo_9 before demo_10).

    The last row of `next_obs`, if there is one, is the episode's last observation. Without it the
    last action has no next observation and is left out. An episode is terminated if its last
    `dones` is set; robomimic sets it at success, at the end of a demo, or both. Missing rewards
    are zero. `object` is simulator truth, so it is privileged.
    """

    @dataclass(frozen=True)
    class Config:
        """The demos that are read, and the orientation of their images."""

        filter: str = ""  # name of a mask, such as train or 20_percent; none: every demo
        flip: bool = False  # flip rows: robosuite's own and LIBERO's images begin at the bottom

    def __init__(self, path: Path | str, config: Config | None = None) -> None:
        """Find the demos in the file at `path`; SourceError if it has none to read."""
        self.path, self.config = Path(path), config or self.Config()
        self.settings: dict[str, Any] = {
            "format": "robomimic",
            **settings.to_values(self.config),
        }
        with hdf5.opened(self.path) as file:
            self.demos = self._find(file)
            self._task = _language(_values(file["data"], "problem_info"))
            arguments = _values(file["data"], "env_args")
            self.spec = self._spec(file, arguments)

    def __len__(self) -> int:
        """Return the number of demos."""
        return len(self.demos)

    def episode(self, index: int) -> Episode:
        """Return one demo as an episode; SourceError if it is damaged or unexpected."""
        name = self.demos[index]
        with hdf5.opened(self.path) as file:
            demo = file["data"][name]
            actions = hdf5.array(demo, "actions")
            actions = hdf5.read(actions, hdf5.row_spec(actions)).astype(np.float32)
            length = len(actions)
            observations = {
                key: self._observed(demo, key, length=length) for key in self.spec.observation
            }
            rewards = _numbers(demo, "rewards", length)
            done = bool(_numbers(demo, "dones", length)[-1])
            text = _language(_values(demo, "ep_meta")) or self._task
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

    def _find(self, file: Any) -> list[str]:
        data = file.get("data")
        names = [n for n in data or () if n.startswith("demo_") and n[5:].isdecimal()]
        if not names:
            raise SourceError(f"{self.path}: has no data/demo_N; not a robomimic file")
        chosen = self.config.filter
        if chosen:
            masks = file.get("mask", {})
            if chosen not in masks:
                raise SourceError(f"{self.path}: {unknown('mask', chosen, masks)}")
            wanted = {n.decode() if isinstance(n, bytes) else str(n) for n in masks[chosen][:]}
            missing = sorted(wanted - set(names))
            if missing or not wanted:
                found = f"names {missing[0]}, which is not there" if missing else "is empty"
                raise SourceError(f"{self.path}: mask/{chosen} {found}")
            names = [n for n in names if n in wanted]
        return sorted(names, key=lambda n: int(n[5:]))

    def _spec(self, file: Any, arguments: dict[str, Any]) -> Spec:
        data = file["data"]
        first = data[self.demos[0]]
        if not len(first.get("obs", ())):
            raise SourceError(
                f"{self.path}: has states and actions, but no observations; render them: python "
                f"-m robomimic.scripts.dataset_states_to_obs --dataset {self.path} --output_name "
                "image.hdf5 --done_mode 2 --camera_names agentview (a file that robosuite itself "
                "recorded goes through robomimic.scripts.conversion.convert_robosuite before)"
            )
        observation = {k: hdf5.row_spec(hdf5.array(first["obs"], k)) for k in sorted(first["obs"])}
        size = hdf5.array(first, "actions").shape[1:]
        low, high = np.full(size, np.inf), np.full(size, -np.inf)
        for name in self.demos:
            actions = hdf5.array(data[name], "actions")
            if len(size) != 1 or actions.shape[1:] != size or not len(actions):
                raise SourceError(
                    f"{self.path}: {name}/actions has shape {actions.shape}, need (L >= 1, A) "
                    f"with the A of {self.demos[0]}, {size}"
                )
            values = actions[:].astype(np.float32)
            low = np.fmin(low, np.fmin.reduce(values))
            high = np.fmax(high, np.fmax.reduce(values))
        made = robosuite_actions.describe(arguments, size[0])
        if made.normalised:
            low, high = np.fmin(low, -1), np.fmax(high, 1)
        frequency = _number(arguments.get("env_kwargs", {}), "control_freq")
        return Spec(
            observation=observation,
            action=ActionSpec(
                tuple(low.tolist()), tuple(high.tolist()), made.meaning, made.convention
            ),
            env="",
            privileged=tuple(k for k in TRUTH if k in observation),
            dt=1 / frequency if frequency else None,
        )

    def _observed(self, demo: Any, key: str, *, length: int) -> Array:
        """Return the rows (L + 1, ...) of an observation, or (L, ...) without next_obs."""
        spec = self.spec.observation[key]
        groups = [demo["obs"]] if "obs" in demo else []
        groups += [demo["next_obs"]] if "next_obs" in demo else []
        parts = []
        for group in groups:
            dataset = hdf5.array(group, key)
            if len(dataset) != length:
                raise SourceError(
                    f"{self.path}: {dataset.name} has {len(dataset)} rows for {length} actions"
                )
            parts.append(hdf5.read(dataset, spec))
        if not parts:
            raise SourceError(f"{self.path}: {demo.name} has no obs")
        values = parts[0] if len(parts) == 1 else np.concatenate([parts[0], parts[1][-1:]])
        if not self.config.flip or len(spec.shape) != 3:  # colours, or depth with one channel
            return values
        return values[:, :, ::-1] if images.channels_first(spec.shape) else values[:, ::-1]


def _numbers(demo: Any, name: str, length: int) -> Array:
    """Return (L,) float32, zeros if the demo has none."""
    if name not in demo:
        return np.zeros(length, np.float32)
    dataset = hdf5.array(demo, name)
    values = hdf5.read(dataset, hdf5.row_spec(dataset)).astype(np.float32).reshape(-1)
    if len(values) != length:
        raise SourceError(
            f"{demo.file.filename}: {dataset.name} has {len(values)} numbers for {length} actions"
        )
    return values


def _values(group: Any, name: str) -> dict[str, Any]:
    """Return the JSON mapping in an attribute; empty if there is none."""
    text = group.attrs.get(name)
    if not isinstance(text, str | bytes) or not text.strip():
        return {}
    try:
        found = json.loads(text)
    except ValueError as e:
        raise SourceError(
            f"{group.file.filename}: {group.name}.{name} is not JSON ({e})"
        ) from None
    return found if isinstance(found, dict) else {}


def _number(values: Any, name: str) -> float | None:
    found = values.get(name) if isinstance(values, dict) else None
    return float(found) if isinstance(found, int | float) and found > 0 else None


def _language(values: dict[str, Any]) -> str:
    """Return the sentence that MimicGen (`lang`) or LIBERO (`language_instruction`) has."""
    found = values.get("lang") or values.get("language_instruction") or ""
    text = "".join(found) if isinstance(found, list) else str(found)
    return text.strip().strip('"')
