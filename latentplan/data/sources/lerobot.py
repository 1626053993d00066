"""LeRobot's data sets, version 3, as episodes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from latentplan import config as settings
from latentplan.data.sources import lerobot_files, video
from latentplan.data.sources.lerobot_files import INFO
from latentplan.errors import SourceError, unknown
from latentplan.types import ActionSpec, Array, ArraySpec, Episode, Label, Spec

OBSERVATION, IMAGES = "observation.", "observation.images."
ENDS = ("next.reward", "next.done", "next.truncated")


class Lerobot:
    """A Source of a LeRobot data set in a folder, as LeRobot itself or `latentplan export` made it.

    `observation.images.top` is called `top`, `observation.state` is `state`; features that are
    neither observation nor action are left out. LeRobot keeps as many actions as frames: the last
    has no next observation, so it is left out. Rewards are `next.reward`, or zero; an episode is
    terminated if `next.done` is set before the last frame, else truncated. Stretches of one task
    become labels. LeRobot records no more than names of an action's numbers, so that its convention
    is open.
    """

    @dataclass(frozen=True)
    class Config:
        """The cameras that are read."""

        cameras: tuple[str, ...] = ()  # images by their short name (top); none: all

    def __init__(self, path: Path | str, config: Config | None = None) -> None:
        """Read the description of the data set at `path`; SourceError if it is not whole."""
        self.path, self.config = Path(path), config or self.Config()
        self.settings: dict[str, Any] = {
            "format": "lerobot",
            **settings.to_values(self.config),
        }
        self.files = lerobot_files.find(self.path)
        self.ours = lerobot_files.ours(self.path)
        self.chosen = self._chosen()
        for index in range(len(self)):
            videos = (f for f in self.chosen.values() if self.files.features[f]["dtype"] == "video")
            for file in (self.files.data(index), *(self.files.video(index, f) for f in videos)):
                if not file.exists():
                    raise SourceError(f"{file}: no such file; episode {index} lies in it")
        self.spec = self._spec()

    def __len__(self) -> int:
        """Return the number of episodes."""
        return len(self.files.episodes)

    def episode(self, index: int) -> Episode:
        """Return one episode; SourceError that names the file if it is damaged or unexpected."""
        index = range(len(self))[index]
        features, path = self.files.features, self.files.data(index)
        stored = [f for f in self.chosen.values() if features[f]["dtype"] != "video"]
        ends = [f for f in ENDS if f in features]
        columns = ["episode_index", "timestamp", "task_index", "action", *stored, *ends]
        table = self.files.frames(index, columns)
        where = f"{path}: episode {index}"
        if len(table) < 2:
            raise SourceError(f"{where} has a single frame, need two at least")

        def column(name: str, *shape: int) -> Array:
            at = f"{where}, {name}"
            values = lerobot_files.numbers(table[name], shape=shape, where=at)
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                bad = int((~np.isfinite(values)).sum())
                raise SourceError(f"{at}: {bad} of {values.size} numbers are NaN or infinite")
            return values

        observations: dict[str, Array] = {}
        for key, feature in self.chosen.items():
            spec, kind = self.spec.observation[key], features[feature]["dtype"]
            if kind == "video":
                start = float(self.files.episodes[index][f"videos/{feature}/from_timestamp"])
                times = start + column("timestamp").astype(np.float64)
                file = self.files.video(index, feature)
                size = (spec.shape[0], spec.shape[1])
                observations[key] = video.frames(file, times, fps=self.files.fps, size=size)
            elif kind == "image":
                observations[key] = _decoded(table[feature], spec, f"{where}, {feature}")
            else:
                observations[key] = column(feature, *spec.shape).astype(spec.dtype)
        end = {name: column(name)[:-1] for name in ends}
        terminated = bool(end["next.done"][-1]) if "next.done" in end else False
        truncated = bool(end["next.truncated"][-1]) if "next.truncated" in end else not terminated
        rewards = end.get("next.reward", np.zeros(len(table) - 1))
        return Episode(
            observations=observations,
            actions=column("action", self.spec.action.size)[:-1].astype(np.float32),
            rewards=rewards.astype(np.float32),
            terminated=terminated,
            truncated=truncated,
            labels=self._labels(column("task_index")),
        )

    def _chosen(self) -> dict[str, str]:
        """Return the features that are read, by the observation's key."""
        features, known = self.files.features, self._known()
        images = [key for key, feature in known.items() if _is_image(features[feature])]
        for camera in self.config.cameras:
            if camera not in images:
                raise SourceError(f"{self.path}: {unknown('camera', camera, images)}")
        left_out = set(images) - set(self.config.cameras or images)
        chosen = {key: feature for key, feature in known.items() if key not in left_out}
        for feature in chosen.values():
            if (features[feature].get("info") or {}).get("video.is_depth_map"):
                raise SourceError(f"{self.path}: {feature} is a video of depths; choose cameras")
        if not chosen:
            raise SourceError(f"{self.path / INFO}: has no features observation.*")
        return chosen

    def _known(self) -> dict[str, str]:
        """Return all features that are observations, by key."""
        ours, known = self.ours.get("observation", {}), {}
        for feature, about in self.files.features.items():
            if not feature.startswith(OBSERVATION) and feature not in ours:
                continue
            if not _is_image(about) and about["dtype"] not in np.sctypeDict:
                continue  # texts
            key = feature.removeprefix(IMAGES).removeprefix(OBSERVATION)
            key = str(ours.get(feature, key))
            known[feature if key in known else key] = feature
        return known

    def _spec(self) -> Spec:
        features = self.files.features
        observation = {}
        for key, feature in self.chosen.items():
            about = features[feature]
            shape = tuple(int(n) for n in about["shape"])
            if _is_image(about):
                names = [str(n) for n in about.get("names") or ()]
                first = bool(names and names[0].startswith("channel")) or shape[0] == 3 != shape[2]
                shape = (*shape[1:], shape[0]) if first else shape
                if len(shape) != 3 or shape[2] != 3:
                    raise SourceError(f"{self.path / INFO}: {feature} has shape {shape}, not rgb")
            dtype = "uint8" if _is_image(about) else np.dtype(about["dtype"]).name
            observation[key] = ArraySpec(shape, dtype, _meaning(about.get("names")))
        about = features.get("action", {})
        shape = tuple(about.get("shape", ()))
        if len(shape) != 1:
            raise SourceError(f"{self.path / INFO}: action has shape {shape}, need (A,)")
        low, high = self._bounds(int(shape[0]))
        action = ActionSpec(low, high, _meaning(about.get("names")))
        spec = Spec(observation, action, dt=1 / self.files.fps)
        return _restored(spec, self.ours["spec"]) if "spec" in self.ours else spec

    def _bounds(self, size: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the smallest and largest finite action (A,) in the data."""
        low, high = np.full(size, np.inf), np.full(size, -np.inf)
        for path in self.files.starts:
            column = self.files.column(path, "action")
            where = f"{path}: action"
            values = lerobot_files.numbers(column, shape=(size,), where=where).astype(np.float32)
            values[~np.isfinite(values)] = np.nan  # reading that episode raises
            low = np.fmin(low, np.fmin.reduce(values))
            high = np.fmax(high, np.fmax.reduce(values))
        return tuple(low.tolist()), tuple(high.tolist())

    def _labels(self, tasks: Array) -> tuple[Label, ...]:
        """Return the stretches of frames (n,) with one task as labels, if it has a text."""
        starts = np.flatnonzero(np.diff(tasks, prepend=tasks[0] - 1)).tolist()
        labels = []
        for start, end in zip(starts, [*starts[1:], len(tasks)], strict=True):
            text = self.files.tasks.get(int(tasks[start]), "")
            if text:
                labels.append(Label(text, start=start, stop=-1 if end == len(tasks) else end - 1))
        return tuple(labels)


def _is_image(feature: Mapping[str, Any]) -> bool:
    return feature["dtype"] in ("image", "video")


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
    fits, planar = before.action.size == spec.action.size, before.planar
    return replace(
        before,
        observation=observation,
        action=before.action if fits else spec.action,
        privileged=tuple(k for k in before.privileged if k in observation),
        pick=before.pick if before.pick and before.pick.image in observation else None,
        planar=planar if planar and planar.image in observation and fits else None,
        dt=spec.dt,
    )


def _same_rows(one: ArraySpec, other: ArraySpec) -> bool:
    """Return whether rows hold the same numbers: LeRobot has (1,) for a single one."""
    return (one.shape or (1,)) == (other.shape or (1,)) and one.dtype == other.dtype


def _decoded(column: Any, spec: ArraySpec, where: str) -> Array:
    """Return the images (n, h, w, 3) of a column of PNG or JPEG files."""
    from PIL import Image, UnidentifiedImageError

    found = np.empty((len(column), *spec.shape), np.uint8)
    for row, stored in enumerate(column.to_pylist()):
        content = (stored or {}).get("bytes")
        if not content:
            raise SourceError(f"{where}: frame {row} holds no image")
        try:
            with Image.open(io.BytesIO(content)) as image:
                values = np.asarray(image.convert("RGB"))
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as e:
            raise SourceError(f"{where}: frame {row} is damaged ({e})") from None
        if values.shape != spec.shape:
            raise SourceError(f"{where}: frame {row} is {values.shape}, need {spec.shape}")
        found[row] = values
    return found
