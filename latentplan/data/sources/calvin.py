"""CALVIN's data sets (Mees et al. 2022) as episodes: one .npz a frame, recordings of play.

    ROOT/{training,validation}/
      episode_0358482.npz             one frame; "episode" is CALVIN's word for it
      ep_start_end_ids.npy            (n, 2) first and last frame of each recording, both included
      lang_annotations/auto_lang_ann.npy   what happens between two frames, in words
      scene_info.npy, statistics.yaml      may be missing
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from latentplan import budget
from latentplan.config import read_yaml, to_values
from latentplan.data import array_limits, npz
from latentplan.data.sources import observation_keys
from latentplan.data.sources.floats import float32
from latentplan.data.unpickling import read_npy
from latentplan.errors import ConfigError, SourceError, check_range
from latentplan.types import ActionSpec, Array, ArraySpec, Convention, Episode, Label, Spec

LAST = 10**9  # frame, at most; the largest data set has 2.4 million
SEGMENTS = "ep_start_end_ids.npy"
RATE = 30.0  # Hz, of the frames
PLACE, ANGLE = 0.02, 0.05  # metres and rad of a relative action of 1
STORED = {"absolute": "actions", "relative": "rel_actions"}  # names in the .npz files
# Simulator state, and actions, which reveal the next pose.
PRIVILEGED = ("scene_obs", "actions", "rel_actions")
MEANINGS = {
    "rgb_static": "image of the table, from a fixed camera",
    "rgb_gripper": "image from the gripper",
    "rgb_tactile": "two images of the fingers' sensors",
    "depth_static": "depth of rgb_static, m",
    "depth_gripper": "depth of rgb_gripper, m",
    "depth_tactile": "depth of rgb_tactile, m",
    "robot_obs": "tool x y z m, euler xyz rad, width m, 7 joints rad, gripper action (1 opens)",
    "scene_obs": "slider m, drawer m, button, switch, bulb, led, 3 x block x y z m, euler xyz rad",
    "actions": "next pose of the tool as the file has it: x y z m, euler xyz rad, gripper",
    "rel_actions": "change of the tool's pose as the file has it: x50, x20, gripper",
}


class Calvin:
    """A Source of one split of a CALVIN data set: D, ABC, ABCD, debug, or one of the same format.

    Each recording is cut into pieces of similar length that share a frame with the next, so that no
    transition is lost; recordings of one frame have none. Action t leads from frame t to t + 1, so
    the last action of a recording is left out. Rewards are 0, since it is play data. Observations
    have the files' dtypes; `actions` and `rel_actions` are kept among them as they are (float64).
    Labels are the annotated windows, both ends included, cut to the piece. The info holds the
    number of the first `frame`, and the `scene`: 0 is A, 3 is D.
    """

    @dataclass(frozen=True)
    class Config:
        """The split that is read, and the kind of action."""

        split: str = "training"  # or validation
        action: str = "relative"  # relative to the pose, in [-1, 1]; or absolute, m and rad
        length: int = 256  # actions an episode at most
        language: str = "lang_annotations"  # folder of the annotations; empty: no labels

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            check_range("Calvin.length", self.length, 1)
            if self.action not in STORED:
                raise ConfigError(f"Calvin.action: {self.action!r} is not relative or absolute")

    def __init__(
        self,
        path: Path | str,
        config: Config | None = None,
        *,
        keys: Sequence[str] | None = None,
    ) -> None:
        """Find the recordings and labels at `path`; SourceError if it is not a CALVIN data set."""
        self.config = config or self.Config()
        self._folder = _split(Path(path), self.config.split)
        file = self._folder / SEGMENTS
        self._segments = _segments(file)
        self._pieces = _pieces(self._segments, self.config.length, where=str(file))  # (episodes, 2)
        if not len(self._pieces):
            raise SourceError(f"{file}: no recording has two frames")
        self.notes: list[str] = []
        self._labels = self._annotations()
        self._scenes = _scenes(self._folder)
        found = _statistics(self._folder)
        self.spec = self._spec(found, keys)
        inside = [any(a <= x.start <= b for a, b in self._segments.tolist()) for x in self._labels]
        self.settings: dict[str, Any] = {
            **to_values(self.config),
            "annotations": sum(inside),
            "annotations_outside": len(inside) - sum(inside),  # of every recording
            "scenes": self._scenes,
            "statistics": found,
        }

    def __len__(self) -> int:
        """Return the number of pieces."""
        return len(self._pieces)

    def episode(self, index: int) -> Episode:
        """Return one piece of a recording; SourceError if a frame is missing or damaged."""
        first, last = self._pieces[index].tolist()
        stored = STORED[self.config.action]
        rows = {
            key: np.empty((last - first + 1, *array.shape), array.dtype)
            for key, array in self.spec.observation.items()
        }
        actions = np.empty((last - first + 1, 7))
        for row, frame in enumerate(range(first, last + 1)):
            file = self._file(frame)
            arrays = npz.read(file, {stored, *rows})
            _fill(actions, row, arrays[stored], where=f"{file}: {stored}")
            for key, values in rows.items():
                _fill(values, row, arrays[key], where=f"{file}: {key}")
        for key, values in {stored: actions, **rows}.items():
            self._check_finite(key, values, first=first)
        return Episode(
            observations=rows,
            actions=float32(actions[:-1]),
            rewards=np.zeros(last - first, np.float32),
            truncated=True,
            info={"frame": float(first)} | self._scene(first),
            labels=tuple(
                replace(label, start=max(label.start, first) - first, stop=stop - first)
                for label in self._labels
                if (stop := min(label.stop, last)) > max(label.start, first)
            ),
        )

    def _file(self, frame: int) -> Path:
        return self._folder / f"episode_{frame:07d}.npz"

    def _check_finite(self, key: str, values: Array, *, first: int) -> None:
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            bad = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
            raise SourceError(f"{self._file(first + int(bad[0]))}: {key} is NaN or infinite")

    def _scene(self, frame: int) -> dict[str, float]:
        for name, (first, last) in self._scenes.items():
            if first <= frame <= last and name and name[-1] in "ABCD":
                return {"scene": float("ABCD".index(name[-1]))}
        return {}

    def _spec(self, statistics: dict[str, Any], keys: Sequence[str] | None) -> Spec:
        absolute = self.config.action == "absolute"
        arrays = self._example(keys)
        low, high = (-1.0,) * 7, (1.0,) * 7
        if absolute:
            low, high = (-1.0,) * 3 + (-np.pi,) * 3 + (-1.0,), (1.0,) * 3 + (np.pi,) * 3 + (1.0,)
            low = tuple(statistics.get("act_min_bound", low))
            high = tuple(statistics.get("act_max_bound", high))
        unit = 1.0 if absolute else PLACE, 1.0 if absolute else ANGLE
        return Spec(
            observation={
                key: ArraySpec(array.shape, array.dtype.name, MEANINGS.get(key, ""))
                for key, array in arrays.items()
            },
            action=ActionSpec(
                low,
                high,
                "pose of the tool at the next frame: x y z m, euler xyz rad, gripper (1 opens)"
                if absolute
                else "change of the tool's x y z (1 = 0.02 m), euler xyz (1 = 0.05 rad), gripper",
                Convention(
                    control="ee_pose" if absolute else "ee_delta",
                    rotation="euler_xyz",
                    frame="world",
                    position_unit=unit[0],
                    rotation_unit=unit[1],
                    gripper="close_is_-1",
                ),
            ),
            env="calvin",
            privileged=tuple(key for key in PRIVILEGED if key in arrays),
            dt=1 / RATE,
        )

    def _example(self, keys: Sequence[str] | None) -> dict[str, Array]:
        """Return the chosen observations of the first frame in which they can be read.

        Raises the first frame's error if there is none.
        """
        error: SourceError | None = None
        for file in map(self._file, self._pieces[:, 0].tolist()):
            try:
                return self._arrays(file, keys)
            except SourceError as e:
                error = error or e
        assert error is not None  # there is a piece
        raise error

    def _arrays(self, file: Path, keys: Sequence[str] | None) -> dict[str, Array]:
        stored = STORED[self.config.action]
        there = npz.names(file)
        if stored not in there or npz.read(file, [stored])[stored].shape != (7,):
            raise SourceError(f"{file}: has no {stored} of 7 numbers")
        found = npz.read(file, [key for key in there if keys is None or key in keys])
        unfit = {key: array_limits.unfit(a.shape, a.dtype) for key, a in found.items()}
        chosen, notes = observation_keys.storable(dict.fromkeys(there, "") | unfit, keys)
        if not chosen:
            raise SourceError(f"{file}: has no array of numbers")
        self.notes += notes
        return {key: found[key] for key in chosen}

    def _annotations(self) -> list[Label]:
        """Return the labels of the split, in frames; SourceError that lists the folders there are.

        CALVIN's own loader takes a file beside the frames if there is no folder.
        """
        language, name = self.config.language, "auto_lang_ann.npy"
        if not language:
            return []
        standard = language == type(self.config)().language
        files = [self._folder / language / name, *([self._folder / name] if standard else [])]
        for file in files:
            if file.exists():
                return _labels(file)
        there = sorted(file.parent.name for file in self._folder.glob(f"*/{name}"))
        if standard and not there:
            self.notes.append(f"{self._folder}: has no annotations, so episodes have no labels")
            return []
        raise SourceError(
            f"{self._folder}: Calvin.language: no annotations {language!r}; there are: "
            f"{', '.join(there) or 'none'}; an empty language reads none"
        )


def _fill(values: Array, row: int, value: Array, *, where: str) -> None:
    if value.shape != values.shape[1:] or not np.can_cast(value.dtype, values.dtype, "equiv"):
        found, needed = f"{value.dtype} {value.shape}", f"{values.dtype} {values.shape[1:]}"
        raise SourceError(f"{where} is {found}, unlike that of the first frame, {needed}")
    values[row] = value


def _split(root: Path, name: str) -> Path:
    """Return the folder of a split; SourceError that lists the others if it is missing."""
    if not root.is_dir():
        raise SourceError(f"{root}: no such folder")
    if (root / SEGMENTS).exists():
        raise SourceError(f"{root}: is a split; give {root.parent} and split={root.name}")
    there = sorted(file.parent.name for file in root.glob(f"*/{SEGMENTS}"))
    if not there:
        raise SourceError(f"{root}: not a CALVIN data set: no folder in it has {SEGMENTS}")
    if name not in there:
        raise SourceError(f"{root}: has no split {name!r}; splits there: {', '.join(there)}")
    return root / name


def _segments(file: Path) -> Array:
    """Return first and last frame (n, 2) of the recordings."""
    found = read_npy(file)
    if not isinstance(found, np.ndarray) or found.ndim != 2 or found.shape[1:] != (2,):
        raise SourceError(f"{file}: needs an array (n, 2) of frames")
    if not np.issubdtype(found.dtype, np.integer) or not len(found):
        raise SourceError(f"{file}: needs whole numbers of frames, at least one recording")
    if (found < 0).any() or (found[:, 0] > found[:, 1]).any():
        raise SourceError(f"{file}: a recording ends before it begins")
    if found.max() > LAST:
        raise SourceError(f"{file}: ends at frame {found.max()}, allowed are {LAST}")
    return found.astype(np.int64)


def _pieces(segments: Array, length: int, *, where: str) -> Array:
    """Return first and last frame (episodes, 2) of pieces of at most `length` actions.

    Raises BudgetError if there are too many.
    """
    pieces = []
    budget.claim(where, items=int(np.sum(-(-np.diff(segments) // length))))
    for first, last in segments.tolist():
        count = -(-(last - first) // length)
        cuts = np.linspace(first, last, count + 1).round().astype(np.int64)
        pieces.append(np.stack([cuts[:-1], cuts[1:]], axis=1))
    return np.concatenate(pieces)


def _labels(file: Path) -> list[Label]:
    """Return annotations as labels, in frames."""
    found = read_npy(file)
    try:
        texts, tasks = found["language"]["ann"], found["language"]["task"]
        windows = [(int(start), int(stop)) for start, stop in found["info"]["indx"]]
        return [
            Label(str(text), str(task), start, stop)
            for text, task, (start, stop) in zip(texts, tasks, windows, strict=True)
        ]
    except (LookupError, TypeError, ValueError, OverflowError) as e:
        raise SourceError(f"{file}: not CALVIN's annotations ({type(e).__name__}: {e})") from None


def _scenes(folder: Path) -> dict[str, list[int]]:
    """Return first and last frame by scene."""
    file = folder / "scene_info.npy"
    if not file.exists():
        return {}
    found = read_npy(file)
    try:
        return {str(name): [int(first), int(last)] for name, (first, last) in found.items()}
    except (AttributeError, TypeError, ValueError, OverflowError) as e:
        raise SourceError(f"{file}: not CALVIN's scenes ({type(e).__name__}: {e})") from None


def _statistics(folder: Path) -> dict[str, Any]:
    """Return means, deviations and bounds, of the training split if this one has none."""
    files = [folder / "statistics.yaml", folder.parent / "training" / "statistics.yaml"]
    file = next((f for f in files if f.exists()), None)
    if file is None:
        return {}
    try:
        values = read_yaml(file)
        found: dict[str, Any] = {
            key: [float(x) for x in values[key]] for key in values if key.startswith("act_")
        }
        for key in ("robot_obs", "scene_obs"):
            for normaliser in values.get(key, []):
                found[key] = {
                    name: [float(x) for x in normaliser[name]] for name in ("mean", "std")
                }
    except (ConfigError, LookupError, TypeError, ValueError, AttributeError) as e:
        raise SourceError(f"{file}: not CALVIN's statistics ({type(e).__name__}: {e})") from None
    return found
