"""LeRobot's data sets, version 3, as episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from latentplan import budget
from latentplan import config as settings
from latentplan.data import array_limits, image_files
from latentplan.data.sources import lerobot_files, lerobot_tasks, observation_keys, video
from latentplan.data.sources.floats import float32
from latentplan.data.sources.lerobot_files import INFO, TASKS
from latentplan.errors import SourceError, unknown
from latentplan.types import ActionSpec, Array, ArraySpec, Episode, Label, Spec

OBSERVATION, IMAGES = "observation.", "observation.images."
ENDS = ("next.reward", "next.done", "next.truncated")
DEEP = ("I", "F")  # how Pillow's modes of more than 8 bits a channel begin
CHANNELS = (1, 3, 4)  # of an image that is read as rgb


class Lerobot:
    """A Source of a LeRobot data set in a folder, as LeRobot itself or `latentplan export` made it.

    `observation.images.top` is called `top`, `observation.state` is `state`; features that are
    neither observation nor action are left out. LeRobot keeps as many actions as frames: the last
    has no next observation, so it is left out. Rewards are `next.reward`, or zero; an episode is
    terminated if `next.done` is set before the last frame, else truncated. Stretches of one task
    become labels, or all tasks of the episode if only meta/episodes has them. LeRobot records no
    more than names of an action's numbers, so that its convention is open.

    Episodes whose tables or videos are not there, or that have a single frame, raise when they are
    read; a folder may hold a part of a data set.
    """

    @dataclass(frozen=True)
    class Config:
        """The cameras that are read."""

        cameras: tuple[str, ...] = ()  # images by their short name (top); none: all

    def __init__(
        self,
        path: Path | str,
        config: Config | None = None,
        *,
        keys: Sequence[str] | None = None,
    ) -> None:
        """Read the description of the data set at `path`; SourceError if there is none."""
        self.path, self.config = Path(path), config or self.Config()
        self.settings: dict[str, Any] = {
            "format": "lerobot",
            **settings.to_values(self.config),
        }
        self.files = lerobot_files.find(self.path)
        self.ours = lerobot_files.ours(self.path)
        known = self._known()
        reasons = {key: _unfit(self.files.features[feature]) for key, feature in known.items()}
        names, self.notes = observation_keys.storable(reasons, keys)
        if not names:
            why = "; ".join(["has no feature observation.* that can be read", *self.notes])
            raise SourceError(f"{self.path / INFO}: {why}")
        self.chosen = {key: known[key] for key in names}  # features by the observation's key
        if not self.files.tasks and not any(map(lerobot_tasks.of_episode, self.files.episodes)):
            self.notes.append(f"{self.path}: records no tasks, so episodes have no labels")
        self.spec = self._spec()

    def __len__(self) -> int:
        """Return the number of episodes."""
        return len(self.files.episodes)

    def episode(self, index: int) -> Episode:
        """Return one episode; SourceError that names the file if it is damaged or unexpected."""
        index = range(len(self))[index]
        features, path = self.files.features, self.files.data(index)
        for feature in self.chosen.values():
            if features[feature]["dtype"] == "video":
                video.check(self.files.video(index, feature))  # before anything is decoded
        stored = [f for f in self.chosen.values() if features[f]["dtype"] != "video"]
        columns = ["frame_index", "timestamp", "task_index", "action", *stored, *ENDS]
        table = self.files.frames(index, columns)
        number = self.files.episodes[index]["episode_index"]
        where = f"{path}: episode {number}"
        if len(table) < 2:
            raise SourceError(f"{where} has a single frame, need two at least")

        def column(name: str, *shape: int) -> Array:
            at = f"{where}, {name}"
            if name not in table.column_names:
                raise SourceError(f"{path}: has no column {name!r}")
            values = lerobot_files.numbers(table[name], shape=shape, where=at)
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                bad = int((~np.isfinite(values)).sum())
                raise SourceError(f"{at}: {bad} of {values.size} numbers are NaN or infinite")
            return values

        if "frame_index" in table.column_names:
            if (np.diff(column("frame_index").astype(np.int64)) <= 0).any():
                raise SourceError(f"{where}: its frames are not in the order of frame_index")
        observations: dict[str, Array] = {}
        for key, feature in self.chosen.items():
            spec, kind = self.spec.observation[key], features[feature]["dtype"]
            size = prod(spec.shape) * np.dtype(spec.dtype).itemsize
            budget.claim(f"{where}, {feature}", bytes=len(table) * size)
            if kind == "video":
                times = self._start(index, feature) + column("timestamp").astype(np.float64)
                if (np.diff(times) <= 0).any():
                    raise SourceError(f"{where}: its frames are not in the order of timestamp")
                file = self.files.video(index, feature)
                sides = (spec.shape[0], spec.shape[1])
                observations[key] = video.frames(file, times, fps=self.files.fps, size=sides)
            elif kind == "image":
                if feature not in table.column_names:
                    raise SourceError(f"{path}: has no column {feature!r}")
                observations[key] = _decoded(table[feature], spec, f"{where}, {feature}")
            else:
                observations[key] = column(feature, *spec.shape).astype(spec.dtype)
        end = {name: column(name)[:-1] for name in ENDS if name in table.column_names}
        terminated = bool(end["next.done"][-1]) if "next.done" in end else False
        truncated = bool(end["next.truncated"][-1]) if "next.truncated" in end else not terminated
        rewards = end.get("next.reward", np.zeros(len(table) - 1))
        return Episode(
            observations=observations,
            actions=float32(column("action", self.spec.action.size)[:-1]),
            rewards=float32(rewards),
            terminated=terminated,
            truncated=truncated,
            labels=self._labels(
                index, column("task_index") if "task_index" in table.column_names else None
            ),
        )

    def _known(self) -> dict[str, str]:
        """Return the features that are observations, by key; of images the chosen cameras."""
        ours, known = self.ours.get("observation", {}), {}
        for feature in self.files.features:
            if not feature.startswith(OBSERVATION) and feature not in ours:
                continue
            key = feature.removeprefix(IMAGES).removeprefix(OBSERVATION)
            key = str(ours.get(feature, key))
            known[feature if key in known else key] = feature
        images = [key for key, f in known.items() if _is_image(self.files.features[f])]
        for camera in self.config.cameras:
            if camera not in images:
                hint = unknown("camera", camera, images) if images else "the set has no cameras"
                raise SourceError(f"{self.path}: Lerobot.cameras: {hint}")
        without = set(images) - set(self.config.cameras or images)
        return {key: feature for key, feature in known.items() if key not in without}

    def _spec(self) -> Spec:
        features = self.files.features
        observation = {}
        for key, feature in self.chosen.items():
            about = features[feature]
            shape = (*_size(about), 3) if _is_image(about) else tuple(about["shape"])
            dtype = "uint8" if _is_image(about) else np.dtype(about["dtype"]).name
            observation[key] = ArraySpec(shape, dtype, _meaning(about.get("names")))
        about = features.get("action", {})
        size: Any = about.get("shape")
        if not _is_shape(size) or len(size) != 1 or not size[0]:
            raise SourceError(f"{self.path / INFO}: action has shape {size}, need [A]")
        low, high = self._bounds(size[0])
        action = ActionSpec(low, high, _meaning(about.get("names")))
        spec = Spec(observation, action, dt=1 / self.files.fps)
        return _restored(spec, self.ours["spec"]) if "spec" in self.ours else spec

    def _bounds(self, size: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the smallest and largest finite action (A,) in the files that can be read.

        Raises the first file's error if none can be read.
        """
        low, high = np.full(size, np.inf), np.full(size, -np.inf)
        done: set[Path] = set()
        errors: list[SourceError] = []
        for index in range(len(self)):
            try:
                path = self.files.data(index)
                if path in done:
                    continue
                done.add(path)
                column = self.files.column(path, "action")
                where = f"{path}: action"
                values = lerobot_files.numbers(column, shape=(size,), where=where)
            except SourceError as e:  # raised again when an episode of that file is read
                errors.append(e)
                continue
            values = float32(values)
            values[~np.isfinite(values)] = np.nan  # reading that episode raises
            if len(values):
                low = np.fmin(low, np.fmin.reduce(values))
                high = np.fmax(high, np.fmax.reduce(values))
        if not (np.isfinite(low) & np.isfinite(high)).all():
            raise errors[0] if errors else SourceError(f"{self.path}: has no finite action")
        return tuple(low.tolist()), tuple(high.tolist())

    def _start(self, index: int, feature: str) -> float:
        """Return the time in a video at which an episode starts, s."""
        name = f"videos/{feature}/from_timestamp"
        found = self.files.episodes[index].get(name)
        if not isinstance(found, int | float) or not 0 <= found < 1e9:
            raise SourceError(f"{self.path}: {name} of episode {index} is {found!r}, need seconds")
        return float(found)

    def _labels(self, index: int, tasks: Array | None) -> tuple[Label, ...]:
        """Return the stretches of frames (n,) with one task as labels, if it has a text."""
        of_episode = lerobot_tasks.of_episode(self.files.episodes[index])
        if tasks is None or not self.files.tasks:
            return tuple(Label(text) for text in of_episode if text)
        starts = np.flatnonzero(np.diff(tasks, prepend=tasks[0] - 1)).tolist()
        labels = []
        for start, end in zip(starts, [*starts[1:], len(tasks)], strict=True):
            number = int(tasks[start])
            text = self.files.tasks.get(number)
            if text is None and len(of_episode) == 1:
                text = of_episode[0]
            if text is None:
                raise SourceError(
                    f"{self.path / TASKS}: has no task {number}, which episode {index} names"
                )
            if text:
                labels.append(Label(text, start=start, stop=-1 if end == len(tasks) else end - 1))
        return tuple(labels)


def _is_image(feature: Mapping[str, Any]) -> bool:
    return feature.get("dtype") in ("image", "video")


def _is_shape(found: Any) -> bool:
    sizes = found if isinstance(found, list) else [None]
    return all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in sizes)


def _unfit(feature: Mapping[str, Any]) -> str:
    """Return why a feature cannot be an observation; empty if it can."""
    dtype, shape = feature.get("dtype"), feature.get("shape")
    if not _is_shape(shape):
        return f"has the shape {shape!r}"
    assert isinstance(shape, list)
    if _is_image(feature):
        info = feature.get("info")
        if isinstance(info, Mapping) and info.get("video.is_depth_map"):
            return "is a video of depths"
        return "" if _size(feature) else f"is no image of shape (h, w, c), but {tuple(shape)}"
    if not isinstance(dtype, str) or dtype not in np.sctypeDict:
        return f"holds {dtype!r}, not numbers"
    return array_limits.unfit(shape, np.dtype(dtype))


def _size(feature: Mapping[str, Any]) -> tuple[int, ...]:
    """Return (h, w) of an image, whose channels may come first; () if it is none."""
    shape, names = feature["shape"], feature.get("names")
    if len(shape) != 3 or not all(shape):
        return ()
    named = str(names[0]) if isinstance(names, list) and names else ""
    first = named.startswith("channel") or (shape[0] in CHANNELS and shape[2] not in CHANNELS)
    size, channels = (shape[1:], shape[0]) if first else (shape[:2], shape[2])
    return tuple(size) if channels in CHANNELS else ()


def _meaning(names: Any) -> str:
    """Return the names of a feature's numbers, which LeRobot has in a list, or lists by group."""
    if isinstance(names, Mapping):
        return "; ".join(f"{group}: {_meaning(inner)}" for group, inner in names.items())
    return ", ".join(map(str, names)) if isinstance(names, list) else ""


def _restored(spec: Spec, values: Mapping[str, Any]) -> Spec:
    """Return `spec` with what `latentplan export` recorded, as far as it still fits."""
    before = Spec.from_json(values)
    observation = {
        key: was if (was := before.observation.get(key)) and _same_rows(was, now) else now
        for key, now in spec.observation.items()
    }
    found = observation_keys.restricted(replace(before, observation=observation, dt=spec.dt), None)
    if before.action.size == spec.action.size:
        return found
    return replace(found, action=spec.action, planar=None)


def _same_rows(one: ArraySpec, other: ArraySpec) -> bool:
    """Return whether rows hold the same numbers: LeRobot has (1,) for a single one."""
    return (one.shape or (1,)) == (other.shape or (1,)) and one.dtype == other.dtype


def _decoded(column: Any, spec: ArraySpec, where: str) -> Array:
    """Return the images (n, h, w, 3) of a column of PNG or JPEG files."""
    found = np.empty((len(column), *spec.shape), np.uint8)
    for row, stored in enumerate(column.to_pylist()):
        content = stored.get("bytes") if isinstance(stored, dict) else stored
        if not isinstance(content, bytes) or not content:
            raise SourceError(f"{where}: frame {row} holds no image")
        at = f"{where}: frame {row}"
        with image_files.opened(content, where=at, error=SourceError) as image:
            if image.mode.startswith(DEEP):
                raise SourceError(f"{at} has mode {image.mode}, need 8 bits a channel")
            if (image.height, image.width) != spec.shape[:2]:
                raise SourceError(
                    f"{at} is {image.height} x {image.width}, need {spec.shape[0]} x "
                    f"{spec.shape[1]}"
                )
            found[row] = image_files.rgb(image, where=at, error=SourceError)
    return found
