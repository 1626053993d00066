"""Files of RLBench's demos, in RLBench's own layout and in PerAct's, and their pickles.

    TASK/variationN/variation_descriptions.pkl            RLBench
    TASK/variationN/episodes/episodeM/low_dim_obs.pkl
    TASK/variationN/episodes/episodeM/CAMERA_KIND/K.png
    TASK/all_variations/episodes/episodeM/...             PerAct: the same, with
    TASK/all_variations/episodes/episodeM/variation_{descriptions,number}.pkl

Folders sort by number: `listdir` has no order, and episode10 comes after episode9.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latentplan.data.sources.rlbench_spec import CAMERAS, IMAGES
from latentplan.data.unpickling import Namespace, read_pickle
from latentplan.errors import SourceError
from latentplan.files import is_clutter
from latentplan.types import Array, Label

LOW_DIM = "low_dim_obs.pkl"
DESCRIPTIONS = "variation_descriptions.pkl"
TOGETHER = "all_variations"
EPISODE, VARIATION = re.compile(r"episode(\d+)"), re.compile(r"variation(\d+)")
# The classes in pickles; forks with two arms have other observations, also read as namespaces.
KNOWN = (
    "rlbench.demo.Demo",
    "rlbench.backend.observation.Observation",
    "rlbench.backend.observation.UnimanualObservation",
    "rlbench.backend.observation.BimanualObservation",
)


@dataclass(frozen=True)
class Demo:
    """One demo on the disk."""

    folder: Path
    task: str  # as RLBench names its folder: reach_target

    @property
    def low_dim(self) -> Path:
        """The file of all observations but the images."""
        return self.folder / LOW_DIM

    def observations(self) -> list[Namespace]:
        """Return the T observations, T at least 2, without images; SourceError otherwise."""
        found = read_pickle(self.low_dim, known=KNOWN)
        found = getattr(found, "_observations", found)
        if not isinstance(found, list) or not all(isinstance(o, Namespace) for o in found):
            raise SourceError(f"{self.low_dim}: holds no RLBench demo, but a {_kind(found)}")
        if len(found) < 2:
            raise SourceError(
                f"{self.low_dim}: has {len(found)} observations; a demo needs 2 at least"
            )
        return found

    def labels(self) -> tuple[Label, ...]:
        """Return all descriptions of the variation, each over the whole episode.

        The task's name in words if there is no file, or if it holds no texts, as in RLBench's own
        example demos.
        """
        near = self.folder / DESCRIPTIONS
        above = self.folder.parent.parent / DESCRIPTIONS  # of all episodes of the variation
        texts: Any = None
        for file in (near, above):
            if file.is_file():
                texts = read_pickle(file, known=KNOWN)
                break
        if not isinstance(texts, list) or not all(isinstance(t, str) and t for t in texts):
            texts = []
        return tuple(Label(t, self.task) for t in texts or [self.task.replace("_", " ")])

    def variation(self) -> int | None:
        """Return the number of the task's variation, None if it is not recorded."""
        named = VARIATION.fullmatch(self.folder.parent.parent.name)
        if named:
            return int(named[1])
        file = self.folder / "variation_number.pkl"
        number = read_pickle(file) if file.is_file() else None
        return int(number) if isinstance(number, int | np.integer) else None

    def cameras(self) -> dict[str, list[str]]:
        """Return the kinds of images (rgb, depth, mask) that there are, by camera."""
        there = {
            camera: [kind for kind in IMAGES if (self.folder / f"{camera}_{kind}").is_dir()]
            for camera in CAMERAS
        }
        return {camera: kinds for camera, kinds in there.items() if kinds}

    def images(self, name: str, count: int) -> Path:
        """Return the folder with the images 0.png ... of `count` observations.

        Raises SourceError if it is missing, or has other files.
        """
        folder = self.folder / name
        try:
            images = (file.name for file in folder.iterdir() if file.suffix == ".png")
            there = {name for name in images if not is_clutter(name)}
        except OSError:
            raise SourceError(
                f"{folder}: no such folder; choose cameras=[...] and images=[...] that all "
                "demos of the set have"
            ) from None
        wanted = {f"{k}.png" for k in range(count)}
        if there != wanted:
            odd = min(there ^ wanted, key=_number)
            raise SourceError(
                f"{folder}: holds {len(there)} images, {LOW_DIM} has {count} observations; "
                f"{odd} is {'missing' if odd in wanted else 'too much'}"
            )
        return folder


def find(path: Path | str) -> list[Demo]:
    """Return all demos below a root, a task, a variation or an episode, in order.

    Raises SourceError if there is none, or if a task is there in both layouts.
    """
    root = Path(path).absolute()
    if not root.is_dir():
        raise SourceError(f"{path}: no such folder")
    if (root / LOW_DIM).is_file():
        return _demos(root.parent, [root])
    for folder in (root, root / "episodes"):
        if _numbered(folder, EPISODE):
            return _demos(folder, _numbered(folder, EPISODE))
    tasks = [root] if _variations(root) else _folders(root)
    found = [
        demo
        for task in tasks
        for variation in _variations(task)
        for demo in _demos(variation / "episodes", _numbered(variation / "episodes", EPISODE))
    ]
    if not found:
        splits = [f.name for f in _folders(root) if any(_variations(task) for task in _folders(f))]
        hint = f"; there are demos in {', '.join(splits)}: take one of them" if splits else ""
        raise SourceError(
            f"{path}: holds no RLBench demo, need TASK/variationN/episodes/episodeM/{LOW_DIM} or "
            f"TASK/{TOGETHER}/episodes/episodeM/{LOW_DIM}{hint}"
        )
    return found


def stacked(demo: Demo, observations: Sequence[Namespace], name: str) -> Array | None:
    """Return a low-dimensional observation (T, n) float64, None if the demo has none.

    Raises SourceError if it is missing at some steps, not numbers, or not finite.
    """
    values = [getattr(o, name, None) for o in observations]
    if all(value is None for value in values):
        return None
    return _array(demo, name, values, shape=None)


def camera_values(
    demo: Demo, observations: Sequence[Namespace], name: str, *, shape: tuple[int, ...], advice: str
) -> Array:
    """Return an entry of `misc` for a camera at each step, (T, *shape) float64.

    `name` is for instance front_camera_near. Raises SourceError with the advice if it is
    missing, of another shape or not finite.
    """
    values = []
    for step, observation in enumerate(observations):
        misc = getattr(observation, "misc", None)
        if not isinstance(misc, dict) or name not in misc:
            raise SourceError(f"{demo.low_dim}: misc of step {step} has no {name}; {advice}")
        values.append(misc[name])
    return _array(demo, f"misc {name}", values, shape=shape)


def planes(demo: Demo, observations: Sequence[Namespace], camera: str) -> tuple[Array, Array]:
    """Return a camera's near and far plane at each step, (T,) m; SourceError if they are wrong."""
    advice = "without it depth has no unit; set images=[rgb,mask]"
    names = [f"{camera}_camera_near", f"{camera}_camera_far"]
    near, far = (
        camera_values(demo, observations, name, shape=(), advice=advice) for name in names
    )
    if (near < 0).any() or (near >= far).any():
        raise SourceError(f"{demo.low_dim}: {names[0]} is not within [0, {names[1]})")
    return near, far


def check_lens(
    demo: Demo, observations: Sequence[Namespace], camera: str, *, size: tuple[int, int]
) -> None:
    """Raise SourceError if a camera's matrix was not made for images of (height, width).

    Its principal point is the centre of the image that RLBench rendered, which reveals depth that
    was resized afterwards, even if all images were.
    """
    name = f"{camera}_camera_intrinsics"
    if name not in (getattr(observations[0], "misc", None) or {}):
        return  # old demos: nothing else reveals it
    advice = "set images=[rgb,mask]"
    lens = camera_values(demo, observations, name, shape=(3, 3), advice=advice)
    drawn = 2 * lens[:, 1::-1, 2]  # (T, 2) height, width
    if (np.abs(drawn - size) > 1).any():
        height, width = drawn[0].round().astype(int)
        raise SourceError(
            f"{demo.folder / f'{camera}_depth'}: images are {size[1]} x {size[0]}, {name} is of "
            f"{width} x {height}; depth that was resized has lost its numbers: take the original, "
            "or set images=[rgb,mask]"
        )


def _array(demo: Demo, name: str, values: list[Any], *, shape: tuple[int, ...] | None) -> Array:
    try:
        found = np.array(values, np.float64)
    except (TypeError, ValueError):
        raise SourceError(
            f"{demo.low_dim}: {name} is not an array of numbers of one shape at every step"
        ) from None
    if shape is None:
        found = found.reshape(len(found), -1)  # gripper_open is a number
    elif found.shape[1:] != shape:
        raise SourceError(f"{demo.low_dim}: {name} has shape {found.shape[1:]}, need {shape}")
    if not np.isfinite(found).all():
        step = int(np.argmin(np.isfinite(found).reshape(len(found), -1).all(1)))
        raise SourceError(f"{demo.low_dim}: {name} is NaN or infinite at step {step}")
    return found


def _demos(folder: Path, episodes: list[Path]) -> list[Demo]:
    """Return the demos in a folder `episodes`; the task's is two above it."""
    variation = folder.parent
    inside = folder.name == "episodes" and _is_variation(variation)
    task = variation.parent.name if inside else folder.name
    return [Demo(episode, task) for episode in episodes]


def _variations(task: Path) -> list[Path]:
    """Return a task's folders of variations; SourceError if demos may appear twice."""
    single, together = _numbered(task, VARIATION), task / TOGETHER
    if not together.is_dir():
        return single
    if single:
        raise SourceError(
            f"{task}: has {TOGETHER} and {single[0].name}, which may hold the same demos; take "
            "one of them"
        )
    return [together]


def _is_variation(folder: Path) -> bool:
    return folder.name == TOGETHER or VARIATION.fullmatch(folder.name) is not None


def _numbered(folder: Path, name: re.Pattern[str]) -> list[Path]:
    """Return the folders whose whole name matches `name`, by number."""
    return sorted((f for f in _folders(folder) if name.fullmatch(f.name)), key=_by_number)


def _folders(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.is_dir()) if folder.is_dir() else []


def _by_number(folder: Path) -> int:
    return _number(folder.name)[0]


def _number(name: str) -> tuple[int, str]:
    """Return the first number in a name, and the name."""
    digits = re.search(r"\d+", name)
    return int(digits[0]) if digits else -1, name


def _kind(value: Any) -> str:
    return value.kind if isinstance(value, Namespace) else type(value).__name__
