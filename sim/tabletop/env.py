"""A tabletop with a drawer, a slider, a switch with a light, and blocks: many tasks, one desk."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict
from gymnasium.utils.seeding import np_random

from latentplan.errors import ConfigError, ShapeError, UnstablePhysics, check_range, unknown
from latentplan.shapes import check, check_finite
from latentplan.sim.rendering.cameras import Camera
from latentplan.sim.tabletop import expert
from latentplan.sim.tabletop.tasks import SIZE, TASKS, Task, draw_start, encode, undo
from latentplan.sim.tabletop.world import TIMESTEP, Kept, World
from latentplan.types import ActionSpec, Array, ArraySpec, Convention, Observation, Spec, Step

HOME = (0.0, -0.05, 0.15, 0.0, 0.0, 0.0)  # m, rad: mean pose of the gripper at a start
AROUND = (0.06, 0.06, 0.03, 0.0, 0.0, 0.0)  # m, rad: largest deviation from it
# m, rad: bounds of the servo's target
LOWEST = (-0.40, -0.55, -0.08, -0.6, -0.6, -1.6)
HIGHEST = (0.40, 0.19, 0.30, 0.6, 0.6, 1.6)
STARTS = 20  # starts drawn for a task that the expert fails at, before that is an error
NAMES = tuple(TASKS)


class Tabletop(gymnasium.Env[dict[str, Array], Array]):
    """A desk with one object to change at a time, with CALVIN's actions and observations.

    The action (7,) in [-1, 1] moves a target of the tool centre point: x, y, z in units of
    `position_unit`, euler xyz in `rotation_unit`, and the gripper: below 0 it closes, else it
    opens. A floating parallel gripper follows the target within 1 / `rate` seconds as far as its
    forces allow; the target stays within LOWEST and HIGHEST. With all angles 0 it points straight
    down.

    Observation, of the `cameras`: `rgb_static`, `rgb_gripper` (h, w, 3) uint8, with `depth` also
    `depth_static`, `depth_gripper` (h, w) float32 in m; `robot_obs` (15,) float32: tool centre
    point (m), euler xyz (rad), width between the fingers (m), seven zeros for an arm's joints,
    -1 if the gripper's command is to close, else 1. Privileged: `scene_obs` (24,) float32 in
    CALVIN's order (slider, drawer, button, switch in m, bulb, led, three blocks' poses; button and
    led do not exist here and are 0), and `task` (1,) int64, its index in `NAMES`.

    `reset` draws a task (config `task`, or `options["task"]`) and a start in which it is undone.
    info: `task`, its name; `text`, an instruction; `goal`, an observation after the expert
    completed the task, without `goals` only its `scene_obs` and `task`; `redrawn`, the number of
    starts dropped because the expert failed. With `options["goal"]`, an observation of this env,
    the start is that scene with the goal's task undone. The same seed gives the same start.

    Reward: minus `distance` to the goal. After a step info holds `distance` (m), `success` (see
    `tasks.Task.done`: since the start the object moved as far as CALVIN requires) and `task`.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 30}
    name = "tabletop"
    episode_length = 64  # most actions of a task

    @dataclass(frozen=True)
    class Config:
        """The task, the meaning of actions, and the observations."""

        task: str = "any"  # one of tasks.TASKS, or any: a reset draws one
        rate: float = 30.0  # actions per second; an action takes a multiple of 1/120 s
        position_unit: float = 0.02  # displacement of an action of 1, m
        rotation_unit: float = 0.05  # rotation of an action of 1, rad
        cameras: tuple[str, ...] = ("static", "gripper")  # cameras in use
        depth: bool = False  # whether cameras give depth, too
        static: int = 64  # side of the images of the camera in front of the desk, pixels
        gripper: int = 64  # side of the images of the camera on the wrist, pixels
        goals: bool = True  # whether goals of a reset have images, which makes resets slower
        stop: bool = False  # whether success ends the episode, `after` actions later
        after: int = 2  # actions after success; stop=true

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            if self.task != "any" and self.task not in TASKS:
                raise ConfigError(str(unknown("Tabletop.task", self.task, ("any", *TASKS))))
            for camera in self.cameras:
                if camera not in ("static", "gripper"):
                    known = ("static", "gripper")
                    raise ConfigError(str(unknown("Tabletop.cameras", camera, known)))
            check_range("Tabletop.rate", self.rate, 5, 60)
            check_range("Tabletop.position_unit", self.position_unit, 0.005, 0.1)
            check_range("Tabletop.rotation_unit", self.rotation_unit, 0.005, 0.5)
            check_range("Tabletop.static", self.static, 16, 512)
            check_range("Tabletop.gripper", self.gripper, 16, 512)
            check_range("Tabletop.after", self.after, 0, 1000)

    def __init__(self, config: Config | None = None) -> None:
        """Build the world; MissingDependency if PyBullet is not installed."""
        self.config = c = config or self.Config()
        self.render_mode = "rgb_array"
        substeps = round(1 / c.rate / TIMESTEP)
        self._world = World(substeps=substeps, static=c.static, gripper=c.gripper)
        self._units = (c.position_unit, c.rotation_unit)
        self._scale = np.repeat(self._units, 3)
        pixels = {"static": c.static, "gripper": c.gripper}
        observation: dict[str, ArraySpec] = {}
        for camera in c.cameras:
            side = (pixels[camera],) * 2
            observation[f"rgb_{camera}"] = ArraySpec((*side, 3), "uint8", f"camera {camera}")
        for camera in c.cameras if c.depth else ():
            side = (pixels[camera],) * 2
            meaning = f"camera {camera}, m along its axis"
            observation[f"depth_{camera}"] = ArraySpec(side, "float32", meaning)
        observation["robot_obs"] = ArraySpec(
            (15,), "float32", "tool x, y, z m; euler xyz rad; width m; seven 0; gripper -1 closed"
        )
        observation["scene_obs"] = ArraySpec(
            (SIZE,),
            "float32",
            "slider, drawer, 0, switch m; bulb, 0; red, blue, pink: x, y, z m, euler xyz rad",
        )
        observation["task"] = ArraySpec((1,), "int64", f"number of {', '.join(NAMES)}")
        unit = f"1 = {c.position_unit} m, {c.rotation_unit} rad"
        self.data_spec = Spec(
            observation=observation,
            action=ActionSpec(
                low=(-1.0,) * 7,
                high=(1.0,) * 7,
                meaning=f"change of the target x, y, z, euler xyz ({unit}); gripper closed below 0",
                convention=Convention(
                    "ee_delta",
                    rotation="euler_xyz",
                    frame="world",
                    position_unit=c.position_unit,
                    rotation_unit=c.rotation_unit,
                    gripper="close_is_-1",
                ),
            ),
            env=self.name,
            privileged=("scene_obs", "task"),
            dt=substeps * TIMESTEP,
        )
        self.action_space = Box(-1.0, 1.0, (7,), np.float32)
        self.observation_space: Dict = Dict(  # type: ignore[assignment]
            {key: _space(array) for key, array in observation.items()}
        )
        self._begun: _Episode | None = None

    @staticmethod
    def settings_for(spec: Spec) -> dict[str, Any]:
        """Return the Config values for the actions and images of a model's `spec`."""
        found: dict[str, Any] = {}
        if spec.dt:
            found["rate"] = round(1 / spec.dt, 6)
        convention = spec.action.convention
        if convention is not None and convention.control == "ee_delta":
            found["position_unit"] = convention.position_unit
            found["rotation_unit"] = convention.rotation_unit
        for camera in ("static", "gripper"):
            if f"rgb_{camera}" in spec.observation:
                found[camera] = spec.observation[f"rgb_{camera}"].shape[0]
        return found

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """Begin a task; see the class for `options` "task" and "goal", and for the info.

        Raises ShapeError if the goal is not an observation of this env, ConfigError for an unknown
        task, UnstablePhysics if the simulation diverges.
        """
        super().reset(seed=seed)
        options = options or {}
        rng, redrawn = self.np_random, 0
        goal: Observation | None = options.get("goal")
        if goal is None:
            goal, redrawn = self._draw(options.get("task"), rng, shown=self.config.goals)
        else:
            self._begin(_task_of(goal), undo(_task_of(goal), goal["scene_obs"], rng), rng)
        task = self._episode.task
        self._set(goal={key: np.array(value) for key, value in goal.items()})
        text = task.sentences[int(rng.integers(len(task.sentences)))]
        info = {"task": task.name, "text": text, "goal": self._episode.goal, "redrawn": redrawn}
        return self._observe(), info

    def step(self, action: Array) -> Step:  # type: ignore[override]
        """Move the target and the fingers, see the class, and return the next observation."""
        action = np.asarray(action, np.float64)
        check("Tabletop.action", action, "A", A=7)
        check_finite("Tabletop.action", action)
        if np.abs(action).max() > 1 + 1e-6:
            raise ShapeError(f"Tabletop.action: {action.tolist()} is not within [-1, 1]")
        self._move(action)
        now = self._episode
        observation = self._observe()
        scene = observation["scene_obs"]
        success = now.task.done(scene, now.start)
        since = now.since + 1 if success or now.since else 0
        self._set(since=since)
        distance = self.distance(observation, now.goal)
        info = {"task": now.task.name, "distance": distance, "success": success}
        ended = self.config.stop and since > self.config.after
        return Step(observation, -distance, ended, False, info)

    def goal(self, *, seed: int) -> dict[str, Array]:
        """Return an observation after the expert completed a task, from a separate start.

        The same seed gives the same goal, independent of earlier calls; the episode continues
        unchanged.
        """
        state = None if self._begun is None else self.snapshot()
        try:
            goal, _ = self._draw(None, np_random(seed)[0], shown=True)
            return dict(goal)
        finally:
            if state is None:
                self._begun = None
            else:
                self._restore(state)

    def distance(self, observation: Observation, goal: Observation) -> float:
        """Return the distance of the task's object from its position in the goal, m.

        It is measured along the task's direction: an object beyond the goal has distance 0.
        """
        return _task_of(goal).missing(observation["scene_obs"], goal["scene_obs"])

    def oracle(self, observation: Observation, goal: Observation) -> Array:
        """Return the expert's action (7,) towards a goal."""
        robot, scene = observation["robot_obs"], observation["scene_obs"]
        return expert.act(_task_of(goal), robot, scene, goal=goal["scene_obs"], units=self._units)

    def expert(self, observation: Observation, rng: np.random.Generator) -> Array:
        """Return the expert's action (7,) in the episode's own task; draws nothing from `rng`."""
        return self.oracle(observation, self._episode.goal)

    def snapshot(self) -> Any:
        """Return the full state: physics, target, task, start and goal."""
        return self._world.snapshot(), self._episode

    def restore(self, state: Any) -> dict[str, Array]:
        """Restore a `snapshot` of this env."""
        self._restore(state)
        return self._observe()

    def cameras(self) -> dict[str, Camera]:
        """Return the cameras in use, by name, at their current poses."""
        return {name: self._world.camera(name) for name in self.config.cameras}

    def render(self) -> Array:
        """Return the image of `rgb_static`."""
        return self._world.image("static").rgb

    def close(self) -> None:
        """Free the world."""
        self._world.close()

    @property
    def _episode(self) -> _Episode:
        if self._begun is None:
            raise gymnasium.error.ResetNeeded("Tabletop: no episode; call reset(seed=...) first")
        return self._begun

    def _set(self, **changes: Any) -> None:
        self._begun = replace(self._episode, **changes)

    def _restore(self, state: tuple[Kept, _Episode]) -> None:
        kept, self._begun = state
        self._world.restore(kept)

    def _choose(self, wanted: str | None, rng: np.random.Generator) -> Task:
        """Return the task of an episode."""
        name = wanted or self.config.task
        if name == "any":
            name = NAMES[int(rng.integers(len(NAMES)))]
        if name not in TASKS:
            raise ConfigError(str(unknown("Tabletop.task", name, ("any", *TASKS))))
        return TASKS[name]

    def _draw(
        self, wanted: str | None, rng: np.random.Generator, *, shown: bool
    ) -> tuple[Observation, int]:
        """Begin a task at a random start; return its goal and the number of dropped starts."""
        task = self._choose(wanted, rng)
        for redrawn in range(STARTS):
            self._begin(task, draw_start(task, rng), rng)
            goal = self._wanted()
            seen = self._done_by_expert(goal) if shown else goal
            if seen is not None:
                return seen, redrawn
        raise UnstablePhysics(f"tabletop: {STARTS} starts of {task.name} could not be solved")

    def _begin(self, task: Task, scene: Any, rng: np.random.Generator) -> None:
        """Lay the scene down, with the gripper at random near its home."""
        target = HOME + rng.uniform(-1, 1, 6) * AROUND
        self._world.lay(scene, pose=target)
        start = encode(self._world.scene())
        self._begun = _Episode(task, start, target, closed=False, since=0, goal={})

    def _wanted(self) -> Observation:
        """Return the start's scene_obs with the task's change, and the task."""
        now = self._episode
        scene = now.start.copy()
        scene[now.task.place] += now.task.way * now.task.further
        return {"scene_obs": scene, "task": np.array([NAMES.index(now.task.name)])}

    def _done_by_expert(self, goal: Observation) -> Observation | None:
        """Return the observation when the expert reaches the goal; None if it fails.

        The episode continues unchanged.
        """
        state, now = self._world.snapshot(), self._episode
        wanted = goal["scene_obs"]
        try:
            for _ in range(self.episode_length):
                robot, scene = self._robot(), encode(self._world.scene())
                if now.task.missing(scene, wanted) == 0 and now.task.done(scene, now.start):
                    return self._observe()
                self._move(expert.act(now.task, robot, scene, goal=wanted, units=self._units))
            return None
        finally:
            self._restore((state, now))

    def _move(self, action: Array) -> None:
        now = self._episode
        moved = np.clip(now.target + action[:6] * self._scale, LOWEST, HIGHEST)
        closed = bool(action[6] < 0)
        self._world.move(now.target, moved, closed=closed)
        self._set(target=moved, closed=closed)

    def _robot(self) -> Array:
        """Return robot_obs (15,)."""
        grip = -1.0 if self._episode.closed else 1.0
        return np.concatenate([self._world.hand(), (0.0,) * 7, [grip]]).astype(np.float32)

    def _observe(self) -> dict[str, Array]:
        seen = {}
        for name in self.config.cameras:
            image = self._world.image(name)
            seen[f"rgb_{name}"] = image.rgb
            if self.config.depth:
                seen[f"depth_{name}"] = image.depth
        seen["robot_obs"] = self._robot()
        seen["scene_obs"] = encode(self._world.scene())
        seen["task"] = np.array([NAMES.index(self._episode.task.name)])
        return seen


@dataclass(frozen=True)
class _Episode:
    """The state of an episode besides the physics."""

    task: Task
    start: Array  # scene_obs (24,)
    target: Array  # (6,) m, rad: target of the servo
    closed: bool  # whether the fingers' target is closed
    since: int  # actions since the first success, inclusive; 0 before it
    goal: Observation


def _task_of(goal: Observation) -> Task:
    """Return the task of a goal; ShapeError if it is not an observation of this env."""
    for key, size in (("scene_obs", SIZE), ("task", 1)):
        if key not in goal:
            raise ShapeError(f"goal: has no {key!r}; a goal is an observation of the tabletop")
        check(f"goal.{key}", goal[key], "n", n=size)
    number = int(goal["task"][0])
    if not 0 <= number < len(NAMES):
        raise ShapeError(f"goal.task: {number} is not within [0, {len(NAMES) - 1}]")
    return TASKS[NAMES[number]]


def _space(array: ArraySpec) -> Box:
    low, high = {"uint8": (0, 255), "int64": (0, len(NAMES) - 1)}.get(
        array.dtype, (-np.inf, np.inf)
    )
    return Box(low, high, array.shape, np.dtype(array.dtype).type)
