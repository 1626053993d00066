"""RLBench's tasks as an Env; RLBench and CoppeliaSim must be installed.

Written from the source of RLBench 1.2.0 (github.com/stepjam/RLBench); its tests run against a small
imitation with the same names and parameters, not against CoppeliaSim.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict

from latentplan.data.sources import rlbench_spec
from latentplan.data.sources.rlbench_spec import CAMERAS, STATE
from latentplan.errors import (
    ConfigError,
    LatentplanError,
    MissingDependency,
    ShapeError,
    UnstablePhysics,
    check_range,
    unknown,
)
from latentplan.shapes import check, check_finite
from latentplan.sim.rlbench import simulator
from latentplan.sim.rlbench.randomness import Randomness, current, install, seeded
from latentplan.sim.rlbench.simulator import RENDERERS, look, numbers
from latentplan.types import Array, Observation, Spec, Step

ATTEMPTS = 10  # placements of a task, at most, until one has a demo
KEPT = 16  # goals whose demos are kept


class Demo(NamedTuple):
    """A demonstration that RLBench makes from a placement."""

    start: Randomness  # random state of the placement
    variation: int
    actions: Array  # (L, A)


class RLBench(gymnasium.Env[dict[str, Array], Array]):
    """A task of RLBench (James et al. 2020, arXiv 1909.12271), simulated by CoppeliaSim.

    Observations and actions are those of the importer (`data/sources/rlbench.py`) with the same
    settings, so that a model of imported demos can plan here. action=next_joint drives the joints
    to positions (rad), joint_velocity at velocities (rad/s), both for 0.05 s; next_pose moves the
    gripper to a near pose by inverse kinematics, keyframe to any pose by path planning, without a
    time limit. Quaternions are normalised. The last number opens the gripper above 0.5, after the
    arm's motion.

    An action that RLBench refuses (no path, outside the workspace) moves nothing, and
    `info["refused"]` holds the reason. Reward is 1 if the task is done and 0 otherwise; the episode
    terminates then. `info` of a reset has `task`, `text` (an instruction) and `variation`.

    A seed determines variation and placement; paths that CoppeliaSim samples may still differ.
    There is no exact snapshot. `goal` and `expert` request a demo of RLBench, which takes seconds:
    its end is the goal, and `oracle` and `expert` replay its actions. `reset` with the option
    `goal` begins at that demo's placement. CoppeliaSim runs once in a process.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}
    name = "rlbench"
    episode_length = 400  # actions of an attempt
    _running: RLBench | None = None  # the one of this process

    @dataclass(frozen=True)
    class Config:
        """The task, its observations and its actions."""

        task: str = "reach_target"  # name of its file in RLBench
        variation: int = 0  # variation of the task; -1: drawn for every episode
        action: str = "next_joint"  # or next_pose, keyframe, joint_velocity
        cameras: tuple[str, ...] = CAMERAS  # cameras in use; none: fast
        images: tuple[str, ...] = ("rgb",)  # images of each: rgb, depth, mask
        image: int = 128  # side of every image, pixels
        clouds: bool = False  # whether to add points in the world, from depth
        stride: int = 1  # pixels between the points of a cloud
        matrices: bool = True  # whether to add the cameras' extrinsics and intrinsics
        robot: str = "panda"  # or sawyer, jaco, mico, ur5
        task_state: int = 0  # numbers of task_low_dim_state, padded with zeros; 0: its own length
        collisions: bool = False  # whether planned paths avoid collisions; action=keyframe
        static: bool = False  # place the task as in its model, instead of at random
        renderer: str = "opengl3"  # or opengl, for machines without a GPU
        headless: bool = True  # no window

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            rlbench_spec.check("RLBench", self)
            check_range("RLBench.variation", self.variation, -1)
            check_range("RLBench.image", self.image, 16, 1024)
            if self.renderer not in RENDERERS:
                raise ConfigError(str(unknown("RLBench.renderer", self.renderer, RENDERERS)))

    def __init__(self, config: Config | None = None) -> None:
        """Start CoppeliaSim; MissingDependency, with the install command, if it is missing."""
        self.config = c = config or self.Config()
        self.render_mode = "rgb_array"
        modules = simulator.library()
        if RLBench._running is not None:
            raise LatentplanError(
                "env 'rlbench': CoppeliaSim runs once in a process; close the other env first"
            )
        try:
            task = modules.utils.name_to_task_class(c.task)
        except modules.utils.InvalidTaskName as e:
            raise ConfigError(f"RLBench.task: RLBench has no {c.task!r} ({e})") from None
        self._refusal = modules.exceptions.InvalidActionError
        self._failures = (RuntimeError, modules.errors.PyRepError)
        self._misplaced = modules.exceptions.TaskEnvironmentError
        self._sim = modules.rlbench.Environment(
            simulator.action_mode(modules, c),
            obs_config=simulator.observation_config(modules, c),
            headless=c.headless,
            static_positions=c.static,
            robot_setup=c.robot,
        )
        self._random = seeded(0)
        self._start = self._random
        self._goals: dict[bytes, Demo] = {}
        self._demo: Demo | None = None  # the demo that `oracle` or `expert` replays
        self._steps = -1  # steps of the episode; -1: no episode
        self._seen: Observation = {}
        RLBench._running = self
        try:
            self._task = self._sim.get_task(task)
            count = self._task.variation_count()
            check_range("RLBench.variation", c.variation, -1, count - 1)
            self._variation = max(c.variation, 0)
            self.data_spec = self._spec(self._place()[1])
        except modules.errors.PyRepError as e:
            self.close()
            raise MissingDependency(f"{simulator.INSTALL} ({e})") from None
        except BaseException:
            self.close()
            raise
        action = self.data_spec.action
        low, high = np.array(action.low, np.float32), np.array(action.high, np.float32)
        self.action_space = Box(low, high, dtype=np.float32)
        self.observation_space: Dict = Dict(  # type: ignore[assignment]
            {
                key: Box(0, 255, a.shape, np.uint8)
                if a.dtype == "uint8"
                else Box(0, 2**24 - 1, a.shape, np.int32)
                if a.dtype == "int32"
                else Box(-np.inf, np.inf, a.shape, np.dtype(a.dtype).type)
                for key, a in self.data_spec.observation.items()
            }
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """Place the task; `options["goal"]`, a result of `goal`, sets its placement.

        Raises UnstablePhysics if RLBench finds no place for the task.
        """
        super().reset(seed=seed)
        given = dict(options or {})
        goal = given.pop("goal", None)
        if given:
            raise ConfigError(f"RLBench.reset: no option {sorted(given)[0]!r}; known: goal")
        self._demo = None if goal is None else self._goals.get(_key(goal))
        if self._demo is not None:
            self._random, self._variation = self._demo.start, self._demo.variation
        else:
            self._draw(self.np_random)
        texts, seen = self._place()
        info: dict[str, Any] = {"task": self.config.task, "variation": self._variation}
        if texts:
            info["text"] = str(texts[0])
        if goal is not None:
            info["goal"] = goal
        return dict(self._observe(seen)), info

    def step(self, action: Array) -> Step:  # type: ignore[override]
        """Execute the action, see the class; UnstablePhysics if the simulator fails."""
        if self._steps < 0:
            raise LatentplanError("RLBench.step: no episode; call reset first")
        sent = self._checked(action)
        info: dict[str, Any] = {}
        reward, terminated = 0.0, False
        with self._own_randomness():
            try:
                seen, reward, terminated = self._task.step(sent)
            except self._refusal as e:
                seen, info["refused"] = self._task.get_observation(), str(e)
            except self._failures as e:
                self._steps = -1
                raise UnstablePhysics(f"RLBench: CoppeliaSim failed ({e}); reset the env") from e
        self._steps += 1
        observation = dict(self._observe(seen))
        info["success"] = reward == 1
        return Step(observation, float(reward), bool(terminated), False, info)

    def goal(self, *, seed: int) -> dict[str, Array]:
        """Return the end of a demo that RLBench makes at a placement drawn by `seed`.

        The episode is over; `reset` with the option `goal` begins at the demo's placement.
        """
        rng = np.random.default_rng(seed)
        for _ in range(ATTEMPTS):
            self._draw(rng)
            try:
                demo, end = self._demonstrate()
            except UnstablePhysics as e:
                reason = str(e)
                continue
            if len(self._goals) == KEPT:
                del self._goals[next(iter(self._goals))]
            self._goals[_key(end)] = demo
            return dict(end)
        raise UnstablePhysics(f"{reason}, {ATTEMPTS} times in a row")

    def snapshot(self) -> Any:
        """Raise LatentplanError: CoppeliaSim cannot restore a state exactly."""
        raise LatentplanError(
            "env 'rlbench' has no exact snapshot: CoppeliaSim has none; evaluate with "
            "evaluation.states=0"
        )

    def restore(self, state: Any) -> Observation:
        """Raise LatentplanError, as `snapshot` does."""
        self.snapshot()
        raise AssertionError("unreachable")

    def distance(self, observation: Observation, goal: Observation) -> float:
        """Return the distance of the gripper's tip from its position in the goal, m.

        Only the simulator decides whether the task is done: `info["success"]`.
        """
        here, there = observation["gripper_pose"], goal["gripper_pose"]
        return float(np.linalg.norm(here[:3] - there[:3]))

    def oracle(self, observation: Observation, goal: Observation) -> Array:
        """Return the next action (A,) of the goal's demo; LatentplanError if there is none.

        The goal must be one of the last results of `goal`, and the one of this episode's `reset`.
        """
        demo = self._goals.get(_key(goal))
        if demo is None or demo is not self._demo:
            raise LatentplanError(
                "RLBench.oracle: it replays a demo, and has none for this goal; take a goal from "
                'env.goal(seed=...) and begin with reset(options={"goal": goal})'
            )
        return self._replay(demo)

    def expert(self, observation: Observation, rng: np.random.Generator) -> Array:
        """Return the next action (A,) of a demo that RLBench plans for the present episode.

        Raises UnstablePhysics if RLBench finds no demo, LatentplanError if the episode already has
        steps without the expert.
        """
        if self._demo is None:
            if self._steps:
                raise LatentplanError("RLBench.expert: begin with it right after a reset")
            self._random = self._start
            self._demo = self._demonstrate()[0]
            self._random = self._start
            self._place()  # back to the episode's start
        return self._replay(self._demo)

    def render(self) -> Array:
        """Return the first camera's image of the last observation, (h, w, 3) uint8."""
        for camera in self.config.cameras:
            if f"{camera}_rgb" in self._seen:
                return self._seen[f"{camera}_rgb"]
        raise ConfigError("RLBench.render: no camera gives rgb; set cameras and images")

    def close(self) -> None:
        """End CoppeliaSim."""
        if RLBench._running is self:
            RLBench._running = None
            self._sim.shutdown()

    def _draw(self, rng: np.random.Generator) -> None:
        """Draw the seed of the next placement, and the variation if it is not set."""
        self._random = seeded(int(rng.integers(2**32)))
        if self.config.variation < 0:
            self._variation = int(rng.integers(self._task.variation_count()))

    def _place(self) -> tuple[list[str], Any]:
        """Begin an episode at the placement of `_random`; return descriptions and observation."""
        self._start, self._steps = self._random, -1
        with self._own_randomness():
            self._task.set_variation(self._variation)
            try:
                texts, seen = self._task.reset()
            except self._misplaced as e:
                raise UnstablePhysics(f"RLBench: {e}") from e
        self._steps = 0
        return list(texts), seen

    def _demonstrate(self) -> tuple[Demo, Observation]:
        """Return RLBench's demo at the placement of `_random`, and its last observation."""
        start, self._steps = self._random, -1
        with self._own_randomness():
            self._task.set_variation(self._variation)
            try:
                demos = self._task.get_demos(1, live_demos=True, max_attempts=1)
            except RuntimeError as e:
                raise UnstablePhysics(f"RLBench: no demo of {self.config.task} ({e})") from e
        seen = list(demos[0])
        state = {
            name: np.stack([numbers(o, name) for o in seen])
            for name in ("joint_positions", "joint_velocities", "gripper_pose", "gripper_open")
        }
        if self.config.action == "keyframe":
            velocities, opened = state["joint_velocities"], state["gripper_open"][:, 0]
            found = rlbench_spec.keyframes(velocities, opened, still=0.1, gap=5)
            state = {name: values[np.append(0, found)] for name, values in state.items()}
        actions = rlbench_spec.actions(self.config.action, state)
        return Demo(start, self._variation, actions), self._observe(seen[-1])

    def _replay(self, demo: Demo) -> Array:
        action = demo.actions[min(max(self._steps, 0), len(demo.actions) - 1)]
        spec = self.data_spec.action
        low, high = np.array(spec.low, np.float32), np.array(spec.high, np.float32)
        return np.asarray(np.clip(action, low, high))

    def _checked(self, action: Array) -> Array:
        """Return the action (A,) float64 in RLBench's form; ShapeError if it is invalid."""
        spec = self.data_spec.action
        sent = np.array(action, np.float64)
        check("RLBench.action", sent, "A", A=spec.size)
        check_finite("RLBench.action", sent)
        low, high = np.array(spec.low), np.array(spec.high)
        if (sent < low - 1e-6).any() or (sent > high + 1e-6).any():
            raise ShapeError(
                f"RLBench.action: {sent.tolist()} is not within {low.tolist()} to {high.tolist()}"
            )
        if self.config.action in ("next_pose", "keyframe"):
            length = float(np.linalg.norm(sent[3:7]))
            if length < 1e-3:
                raise ShapeError("RLBench.action: its quaternion has length 0, need about 1")
            sent[3:7] /= length
        return sent

    def _spec(self, seen: Any) -> Spec:
        c = self.config
        size = (c.image, c.image)
        state = {
            name: len(numbers(seen, name)) for name in STATE if getattr(seen, name) is not None
        }
        if "task_low_dim_state" in state and c.task_state:
            state["task_low_dim_state"] = c.task_state
        observation = rlbench_spec.observation_spec(
            {(camera, kind): size for camera in c.cameras for kind in c.images},
            clouds={n: rlbench_spec.points(size, c.stride) for n in c.cameras if c.clouds},
            matrices=c.cameras if c.matrices else (),
            state=state,
        )
        return rlbench_spec.spec(observation, c.action, robot=c.robot)

    def _observe(self, seen: Any) -> Observation:
        """Return RLBench's observation by the spec's keys; UnstablePhysics if it is not finite."""
        specs, found = self.data_spec.observation, {}
        for name in STATE:
            if name in specs:
                values = numbers(seen, name)
                missing = specs[name].shape[0] - len(values)
                if missing < 0 or (missing and name != "task_low_dim_state"):
                    raise ConfigError(
                        f"RLBench.task_state: {name} has {len(values)} numbers here, the spec "
                        f"{specs[name].shape[0]}; set task_state to the largest length"
                    )
                found[name] = np.pad(values, (0, missing))
        for camera in self.config.cameras:
            found |= look(seen, camera, config=self.config)
        if not all(np.isfinite(values).all() for values in found.values()):
            raise UnstablePhysics("RLBench: an observation is not finite; reset the env")
        self._seen = {key: found[key] for key in specs}
        return self._seen

    @contextmanager
    def _own_randomness(self) -> Iterator[None]:
        """Set this env's random state for RLBench, and restore the process's own afterwards."""
        before = current()
        install(self._random)
        try:
            yield
        finally:
            self._random = current()
            install(before)


def _key(observation: Observation) -> bytes:
    """Return a key that identifies a goal."""
    names = ("joint_positions", "gripper_pose", "task_low_dim_state")
    return b"".join(
        np.asarray(observation[n], np.float64).tobytes() for n in names if n in observation
    )
