"""RLBench demos as episodes, from RLBench's own layout or PerAct's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latentplan import config as settings
from latentplan.data import array_limits
from latentplan.data.sources import observation_keys, rlbench_images, rlbench_spec
from latentplan.data.sources.rlbench_demos import (
    Demo,
    camera_values,
    check_lens,
    find,
    planes,
    stacked,
)
from latentplan.data.sources.rlbench_spec import CAMERAS, IMAGES, STATE
from latentplan.data.unpickling import Namespace
from latentplan.errors import SourceError, check_range
from latentplan.types import Array, Episode, Spec

NEEDED = {  # observations that actions are made of
    "next_joint": ("joint_positions", "gripper_open"),
    "next_pose": ("gripper_pose", "gripper_open"),
    "keyframe": ("gripper_pose", "gripper_open", "joint_velocities"),
    "joint_velocity": ("joint_velocities", "gripper_open"),
}


class Rlbench:
    """A Source of RLBench demos: each becomes an episode that ends with the task done.

    Demos hold no actions. Action t is the state of the arm and the gripper at observation t + 1, as
    joint positions, pose or joint velocities. With action=keyframe it is the pose at the next
    keyframe, and the episode consists of the first observation and the keyframes. The last action
    has reward 1, the others 0: RLBench records no demo that fails.

    All demos must have the images, sizes and numbers of the first that can be read; a demo without
    them is refused, what it has more is left out. Only the length of `task_low_dim_state` differs
    between tasks: it is the largest of the tasks' first demos, padded with zeros.
    """

    @dataclass(frozen=True)
    class Config:
        """The observations that are read, and the kind of action."""

        action: str = "next_joint"  # or next_pose, keyframe, joint_velocity
        cameras: tuple[str, ...] = ()  # left_shoulder, ...; none: all that the first demo has
        images: tuple[str, ...] = ()  # rgb, depth, mask; none: all that the first demo has
        clouds: bool = False  # also points in the world, from the depth of every camera
        stride: int = 1  # pixels between the points of a cloud
        matrices: bool = True  # also the cameras' poses and lenses
        robot: str = "panda"  # or sawyer, jaco, mico, ur5: whose limits bound the actions
        task_state: int = 0  # numbers of task_low_dim_state; 0: the largest of the tasks
        still: float = 0.1  # rad/s, the fastest joint of an arm at rest; action=keyframe
        gap: int = 5  # the fewest observations between two rests; action=keyframe

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            rlbench_spec.check("Rlbench", self)
            check_range("Rlbench.still", self.still, 0, 100)
            check_range("Rlbench.gap", self.gap, 1, 1_000_000)

    def __init__(
        self,
        path: Path | str,
        config: Config | None = None,
        *,
        keys: Sequence[str] | None = None,
    ) -> None:
        """Find the demos at `path`: a root, a task, a variation or an episode."""
        self.config = config or self.Config()
        self.demos = find(path)
        self.settings: dict[str, Any] = settings.to_values(self.config)
        self.notes: list[str] = []
        self.spec, self._sizes = self._first(keys)

    def __len__(self) -> int:
        """Return the number of demos."""
        return len(self.demos)

    def episode(self, index: int) -> Episode:
        """Return one demo as an episode; SourceError that names the file if it is unexpected."""
        demo, c = self.demos[index], self.config
        observations = demo.observations()
        count = len(observations)
        state = self._state(demo, observations)
        chosen = np.arange(count)
        if c.action == "keyframe":
            velocities, opened = state["joint_velocities"], state["gripper_open"][:, 0]
            found = rlbench_spec.keyframes(velocities, opened, still=c.still, gap=c.gap)
            chosen = np.append(0, found)
            state = {name: values[chosen] for name, values in state.items()}
            observations = [observations[k] for k in chosen]
        rewards = np.zeros(len(chosen) - 1, np.float32)
        rewards[-1] = 1
        variation = demo.variation()
        seen = state | self._seen(demo, observations, chosen.tolist(), count=count)
        return Episode(
            observations={key: seen[key] for key in self.spec.observation},
            actions=rlbench_spec.actions(c.action, state),
            rewards=rewards,
            terminated=True,
            info={} if variation is None else {"variation": float(variation)},
            labels=demo.labels(),
        )

    def _first(self, keys: Sequence[str] | None) -> tuple[Spec, dict[str, tuple[int, int]]]:
        """Return the spec and (height, width) by camera of the first demo that can be read."""
        first: SourceError | None = None
        for demo in self.demos:
            try:
                return self._spec(demo, keys)
            except SourceError as e:
                first = first or e
        assert first is not None  # `find` returns at least one demo
        raise first

    def _spec(
        self, demo: Demo, keys: Sequence[str] | None
    ) -> tuple[Spec, dict[str, tuple[int, int]]]:
        c, observations = self.config, demo.observations()
        kinds = self._kinds(demo)
        state = [name for name in STATE if any(_has(o, name) for o in observations)]
        for name in NEEDED[c.action]:
            if name not in state:
                raise SourceError(
                    f"{demo.low_dim}: has no {name}, of which action={c.action} is made; choose "
                    "another action=..., and one arm: demos of two are not read"
                )
        there = rlbench_spec.keys(kinds, clouds=c.clouds, matrices=c.matrices, state=state)
        lengths, reasons = {}, dict.fromkeys(there, "")
        for name in state:
            if keys is None or name in keys or name in NEEDED[c.action]:
                lengths[name] = self._length(demo, observations, name)
                reasons[name] = array_limits.unfit((lengths[name],), np.dtype(np.float64))
        chosen, self.notes = observation_keys.storable(reasons, keys)
        sizes = {camera: self._size(demo, camera, chosen) for camera in kinds}
        seen = {camera: size for camera, size in sizes.items() if size is not None}
        every = rlbench_spec.observation_spec(
            {(camera, kind): size for camera, size in seen.items() for kind in kinds[camera]},
            clouds={n: rlbench_spec.points(s, c.stride) for n, s in seen.items() if c.clouds},
            matrices=tuple(kinds) if c.matrices else (),
            state=lengths,
        )
        observation = {key: every[key] for key in chosen}
        return rlbench_spec.spec(observation, c.action, robot=c.robot), seen

    def _kinds(self, demo: Demo) -> dict[str, list[str]]:
        """Return the kinds of images to read by camera; SourceError that lists those there are."""
        c, there = self.config, demo.cameras()
        listed = "; ".join(f"{camera}: {', '.join(kinds)}" for camera, kinds in there.items())
        found = {}
        for camera in c.cameras or there:
            for kind in (*c.images, *(["depth"] if c.clouds else [])):
                if kind not in there.get(camera, []):
                    raise SourceError(
                        f"{demo.folder}: has no {camera}_{kind}; images there are: "
                        f"{listed or 'none'}"
                    )
            if camera not in there:
                raise SourceError(
                    f"{demo.folder}: has no images of {camera}; there are: {listed or 'none'}"
                )
            found[camera] = list(c.images or there[camera])
        if not found and (c.images or c.clouds):
            raise SourceError(f"{demo.folder}: has no images")
        return found

    def _size(self, demo: Demo, camera: str, chosen: Sequence[str]) -> tuple[int, int] | None:
        """Return (height, width) of a camera's chosen images; None if none is chosen."""
        read = [kind for kind in IMAGES if f"{camera}_{kind}" in chosen]
        if f"{camera}_point_cloud" in chosen and "depth" not in read:
            read.append("depth")
        files = [demo.folder / f"{camera}_{kind}" / "0.png" for kind in read]
        if not files:
            return None
        size = rlbench_images.size(files[0])
        for file in files[1:]:
            rlbench_images.check_size(file, size, "the camera's other images have")
        return size

    def _length(self, demo: Demo, observations: Sequence[Namespace], name: str) -> int:
        """Return how many numbers an observation of the state has."""
        values = stacked(demo, observations, name)
        length = 0 if values is None else values.shape[1]
        if name != "task_low_dim_state":
            return length
        return self.config.task_state or max([length, *self._task_states(demo.task)])

    def _task_states(self, done: str) -> Iterator[int]:
        """Yield the length of task_low_dim_state in the first demo of each task but `done`."""
        tasks = {done}
        for demo in self.demos:
            if demo.task in tasks:
                continue
            try:
                values = stacked(demo, demo.observations(), "task_low_dim_state")
            except SourceError:
                continue  # reading that episode raises
            tasks.add(demo.task)
            yield 0 if values is None else values.shape[1]

    def _state(self, demo: Demo, observations: Sequence[Namespace]) -> dict[str, Array]:
        """Return the numbers (T, n) by name, always including those that actions are made of."""
        found = {}
        for name in STATE:
            array = self.spec.observation.get(name)
            if array is None and name not in NEEDED[self.config.action]:
                continue
            values = stacked(demo, observations, name)
            if values is None:
                raise SourceError(f"{demo.low_dim}: has no {name}, which the set's first demo has")
            if name == "task_low_dim_state":
                values = self._padded(demo, values)
            elif array is not None and values.shape[1:] != array.shape:
                raise SourceError(
                    f"{demo.low_dim}: {name} has {values.shape[1]} numbers, the set's first demo "
                    f"has {array.shape[0]}; all demos of a set need the same"
                )
            found[name] = values
        joints, positions = rlbench_spec.JOINTS[self.config.robot], found.get("joint_positions")
        if positions is not None and positions.shape[1] != joints:
            raise SourceError(
                f"{demo.low_dim}: joint_positions has {positions.shape[1]} numbers, "
                f"robot={self.config.robot} has {joints}; set robot=..."
            )
        return found

    def _padded(self, demo: Demo, values: Array) -> Array:
        wanted = self.spec.observation["task_low_dim_state"].shape[0]
        if values.shape[1] > wanted:
            raise SourceError(
                f"{demo.low_dim}: task_low_dim_state has {values.shape[1]} numbers, the spec has "
                f"{wanted}; set task_state={values.shape[1]}"
            )
        return np.pad(values, ((0, 0), (0, wanted - values.shape[1])))

    def _seen(
        self, demo: Demo, observations: Sequence[Namespace], frames: Sequence[int], *, count: int
    ) -> dict[str, Array]:
        """Return the cameras' observations at `frames` of a demo of `count` observations."""
        specs, found = self.spec.observation, {}
        for camera in CAMERAS:
            size = self._sizes.get(camera, (0, 0))
            for kind in ("rgb", "mask"):
                if f"{camera}_{kind}" in specs:
                    folder = demo.images(f"{camera}_{kind}", count)
                    coded = rlbench_images.read(folder, frames, size=size)
                    found[folder.name] = coded if kind == "rgb" else rlbench_images.handles(coded)
            depth, cloud = f"{camera}_depth", f"{camera}_point_cloud"
            matrices = [f"{camera}_camera_{kind}" for kind in ("extrinsics", "intrinsics")]
            for name, side in zip(matrices, (4, 3), strict=True):
                if name in specs or cloud in specs:
                    advice, shape = "set matrices=false clouds=false", (side, side)
                    found[name] = camera_values(
                        demo, observations, name, shape=shape, advice=advice
                    )
            if depth in specs or cloud in specs:
                folder = demo.images(depth, count)
                check_lens(demo, observations, camera, size=size)
                near, far = planes(demo, observations, camera)
                coded = rlbench_images.read(folder, frames, size=size)
                found[depth] = rlbench_images.metres(coded, near, far=far)
            if cloud in specs:
                found[cloud] = rlbench_images.cloud(
                    found[depth],
                    extrinsics=found[matrices[0]],
                    intrinsics=found[matrices[1]],
                    stride=self.config.stride,
                )
        return {key: values for key, values in found.items() if key in specs}


def _has(observation: Namespace, name: str) -> bool:
    return getattr(observation, name, None) is not None
