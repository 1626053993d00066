"""The env of all tasks with one deformable object on a table: actions, goals, observations.

A task adds the start of its object, its goals, its distance and a scripted expert. An engine
(`engines/engine.py`) simulates the object.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict
from gymnasium.utils.seeding import np_random

from latentplan.data.images import LIFT
from latentplan.errors import ShapeError
from latentplan.robots.kinematics import Unreachable
from latentplan.shapes import check, check_finite
from latentplan.sim.deformable.engines import engine
from latentplan.sim.randomisation import Conditions
from latentplan.sim.rendering import cameras, sensors
from latentplan.sim.rendering.cameras import Camera
from latentplan.types import (
    ActionSpec,
    Array,
    ArraySpec,
    Observation,
    PickSpec,
    PlanarSpec,
    Spec,
    Step,
)

if TYPE_CHECKING:
    from latentplan.sim.deformable.arm_paths import ArmPaths


class Deformable(gymnasium.Env[dict[str, Array], Array]):
    """A deformable object on a table, moved by a gripper that holds one point of it.

    control=pick: an action is a whole pick-and-drag, in [-1, 1]. The pick (x, y) is a point of
    the image, +-1 at its edges (x right, y up), which are +-`view` metres on the table. It snaps
    to the nearest point of the object that the gripper can hold; farther than `pick_radius` from
    any, the gripper grasps nothing: nothing moves, and `info["picked"]` is -1. The drag is in units
    of `drag` metres, and its end is clipped to +-`workspace`. After the move the gripper opens and
    the object comes to rest; an observation always shows it at rest.

    actuator=arm: the same by a simulated arm, within its limits. An infeasible action is refused:
    nothing moves, `picked` is -1, and `info["refused"]` counts such actions of the episode.

    control=velocity: an action (4,) drives the gripper for 1 / `rate` seconds: velocity (x, y, z),
    1 = `speed`, within the workspace and 0 to CEILING metres high, and grip: above 0 the gripper is
    closed. It grasps the object if it closes within `pick_radius` of it (and REACH in height), and
    nothing if it closes elsewhere, until it opens and closes again.

    Observation: `rgb` (image, image, 3) uint8, the privileged `keypoints` in metres, and with
    control=velocity `gripper` (4,) float32: x, y, z in metres, and 1 while closed. `cameras` and
    `observe` add more, see `sensors.Sensors`; `cameras()` returns the cameras' poses.

    rectify: `rgb` shows the table as the camera `top` does at its own pose, however it is moved, so
    that a pick still refers to the same point of the table.

    randomise: a reset draws every setting that has a range, and `info["randomised"]` of reset and
    step holds the drawn numbers, by name. With randomise.per=step the privileged observation
    `randomised` holds those that change. A goal drawn by `reset` is of the episode's own object;
    `goal` draws its own conditions.

    `reset` draws a goal of the task unless `options["goal"]` gives one (an observation with
    keypoints): `info["goal"]`. Reward: minus `distance` to it. After each step `info` holds
    `picked`, `distance` (m) and `success`. Never terminates by itself. Raises UnstablePhysics if
    the simulation diverges; reset it then.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 2}
    CEILING = 0.2  # m, largest height of the gripper
    HOVER = 0.05  # m, height of the gripper after a reset
    REACH = 0.03  # m, height over a grip at which the gripper still grasps it

    name: str  # registry name
    success_threshold: float  # m, largest distance to the goal

    def __init__(self, config: Any, *, lift: bool, keypoints: ArraySpec, pick: PickSpec) -> None:
        """Build the engine; with `lift` a drag has a third number, the height of its middle."""
        self.render_mode = "rgb_array"
        self._sensors = sensors.Sensors(config)
        placed = cameras.of(config)
        self._cameras = {name: placed[name] for name in self._sensors.cameras}
        self._nominal = config
        self._build(config)
        self._goal: Observation | None = None
        self._closed = False
        self._refused = 0
        self._arm: ArmPaths | None = None
        c = config
        if c.actuator == "arm":
            from latentplan.sim.deformable.arm_paths import ArmPaths

            self._arm = ArmPaths(c.arm, timestep=c.timestep)
        observation = {**self._sensors.specs(), "keypoints": keypoints}
        if c.control == "velocity":
            observation["gripper"] = ArraySpec((4,), "float32", "x, y, z in m; 1 while closed")
            size, meaning = 4, f"velocity x, y, z (1 = {c.speed} m/s), grip (closed above 0)"
        else:
            size, meaning = 4, f"pick x, y (1 = {c.view} m), drag x, y (1 = {c.drag} m)"
            if lift:
                size, meaning = 5, f"{meaning}, lift (-1 to 1 = {LIFT[0]} to {LIFT[1]} m)"
        self._conditions: Conditions | None = None
        self._applied: dict[str, float] = {}  # conditions that `_apply` has set in the engine
        if c.randomise.ranges():
            motion = 3 if c.control == "velocity" else size  # the grip is never noisy
            self._conditions = Conditions(
                c.randomise, cameras=self._cameras, action=size, motion=motion
            )
            self._apply()  # fails here if the engine does not support them
            changing = self._conditions.per_step()
            if changing:
                names = ", ".join(changing)
                observation["randomised"] = ArraySpec((len(changing),), "float32", names)
        self.data_spec = Spec(
            observation=observation,
            action=ActionSpec(low=(-1.0,) * size, high=(1.0,) * size, meaning=meaning),
            env=self.name,
            privileged=tuple(k for k in ("keypoints", "randomised") if k in observation),
            pick=pick if c.control == "pick" else None,
            planar=PlanarSpec("rgb", ((0, 1),) if c.control == "velocity" else ((0, 1), (2, 3))),
            dt=self._period() if c.control == "velocity" else None,
        )
        self.action_space = Box(-1.0, 1.0, (size,), np.float32)
        self.observation_space: Dict = Dict(  # type: ignore[assignment]
            {
                key: Box(0, 255, a.shape, np.uint8)
                if a.dtype == "uint8"
                else Box(-np.inf, np.inf, a.shape, np.float32)
                for key, a in observation.items()
            }
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """Lay the object down at random; `options["goal"]` is the goal, see the class."""
        super().reset(seed=seed)
        self._goal = (options or {}).get("goal")
        self._refused = 0
        self._randomise(self.np_random)
        self._lay_start(self.np_random)
        self._raise_gripper()
        if self._goal is None:
            goal_seed = int(self.np_random.integers(2**31))
            self._goal = self._draw_goal(np_random(goal_seed)[0], noise=goal_seed)
        return self._observe(), {"goal": self._goal} | self._randomised()

    def goal(self, *, seed: int) -> dict[str, Array]:
        """Return a goal of the task: an observation of the object in its goal state.

        The same seed gives the same goal, independent of earlier calls; the episode continues
        unchanged.
        """
        state = self.snapshot()
        try:
            rng = np_random(seed)[0]
            self._randomise(rng)
            return self._draw_goal(rng, noise=seed)
        finally:
            self.rewind(state)

    def cameras(self) -> dict[str, Camera]:
        """Return the cameras in use, by name, at the poses that their images show."""
        seen = {"top": self._cameras["top"]} if self.config.rectify else {}
        return self._placed() | seen

    def views(self) -> dict[str, str]:
        """Return the camera of each image (h, w, 3), by observation key."""
        return self._sensors.views()

    @property
    def engine(self) -> Any:
        """Return the physics engine, for callers that move the object without actions."""
        return self._engine

    def observe(self) -> dict[str, Array]:
        """Return the current observation."""
        return self._observe()

    def grasp(self, point: Array) -> int:
        """Close the gripper at `point` (3,), m; return the grip that it holds, -1 for none."""
        grips = self._engine.grips()
        grip = self._choose(grips, point[:2])
        if grip < 0 or point[2] - grips[grip, 2] > self.REACH:
            return -1
        self._engine.grasp(grip)
        return grip

    def step(self, action: Array) -> Step:  # type: ignore[override]
        """Execute the action, see the class, and return the next observation."""
        action = np.asarray(action, np.float64)
        where, size = f"{type(self).__name__}.action", self.data_spec.action.size
        check(where, action, "A", A=size)
        check_finite(where, action)
        if np.abs(action).max() > 1 + 1e-6:
            raise ShapeError(f"{where}: {action.tolist()} is not within [-1, 1]")
        if self._conditions is not None:
            action = self._conditions.act(action)
            self._apply()
        if self.config.control == "velocity":
            picked = self._steer(action[:3], closed=bool(action[3] > 0))
        else:
            picked = self._pick_and_drag(action)
        observation = self._observe()
        info: dict[str, Any] = {"picked": picked} | self._randomised()
        if self._arm is not None:
            info["refused"] = self._refused
        reward = 0.0
        if self._goal is not None:
            distance = self.distance(observation, self._goal)
            info |= {"distance": distance, "success": self.success(observation, self._goal)}
            reward = -distance
        return Step(observation, reward, False, False, info)

    def snapshot(self) -> Any:
        """Return the state of simulator, gripper, conditions and count of refused actions."""
        drawn = None if self._conditions is None else self._conditions.state
        return self._engine.snapshot(), self._closed, self._refused, drawn

    def restore(self, state: Any) -> dict[str, Array]:
        """Restore a `snapshot`; the goal does not change."""
        self.rewind(state)
        return self._observe()

    @abstractmethod
    def distance(self, observation: Observation, goal: Observation) -> float:
        """Return the task's error in metres between two observations."""

    def success(self, observation: Observation, goal: Observation) -> bool:
        """Return whether the task is done."""
        return self.distance(observation, goal) <= self.success_threshold

    @abstractmethod
    def oracle(self, observation: Observation, goal: Observation) -> Array:
        """Return the expert's action (A,)."""

    def attempt(self, state: Any, action: Array) -> Observation:
        """Return the keypoints after an action from a `snapshot`; the env stays in that state."""
        self.rewind(state)
        self._pick_and_drag(action)
        return {"keypoints": self._keypoints()}

    def rewind(self, state: Any) -> None:
        """Restore a `snapshot` without an observation."""
        engine_state, self._closed, self._refused, drawn = state
        if self._conditions is not None and drawn != self._conditions.state:
            self._conditions.restore(drawn)
            self._apply()
        self._engine.restore(engine_state)

    def render(self) -> Array:
        """Return the image of `rgb`."""
        image: Array = self._engine.image()
        return image

    def close(self) -> None:
        """Free the renderers."""
        self._engine.close()

    @abstractmethod
    def _lay_start(self, rng: np.random.Generator) -> None:
        """Lay the object down in a start state, at rest."""

    @abstractmethod
    def _lay_goal(self, rng: np.random.Generator) -> None:
        """Lay the object down in a goal state, at rest."""

    @abstractmethod
    def _keypoints(self) -> Array:
        """Return the observation `keypoints`."""

    def _choose(self, grips: Array, point: Array) -> int:
        """Return the grip nearest to `point` (2,), -1 if none is within the pick radius."""
        gap = np.linalg.norm(grips[:, :2] - point, axis=1)
        nearest = int(gap.argmin())
        return nearest if gap[nearest] <= self.config.pick_radius else -1

    def _lift(self, action: Array) -> float:
        """Return the height in metres of the middle of a drag."""
        return float(LIFT[0] + (action[4] + 1) / 2 * (LIFT[1] - LIFT[0]))

    def _pick_and_drag(self, action: Array) -> int:
        """Pick, lift, move, lower, release, wait for rest; return the picked grip."""
        c = self.config
        grips = self._engine.grips()
        grip = self._choose(grips, action[:2] * c.view)
        if grip >= 0:
            end = np.clip(grips[grip, :2] + action[2:4] * c.drag, -c.workspace, c.workspace)
            grip = self._carry(grip, end, lift=self._lift(action))
        if grip < 0:
            self._engine.wait(c.move_steps)
        self._engine.wait(c.rest_steps)
        self._engine.check()
        self._engine.rest()
        return grip

    def _carry(self, grip: int, end: Array, *, lift: float) -> int:
        """Carry a grip to `end` (2,) along an arc, release it and return it; -1 if refused."""
        start = self._engine.grips()[grip]
        if self._arm is None:
            path = engine.arc(start, end, lift=lift, steps=self.config.move_steps)
        else:
            try:
                path = self._arm.path(start, end, lift=lift)
            except Unreachable:
                self._refused += 1
                return -1
        self._engine.grasp(grip)
        self._engine.follow(path)
        self._engine.release()
        return grip

    def _steer(self, velocity: Array, *, closed: bool) -> int:
        """Move the gripper for one period, and return the grip that it holds."""
        c, here = self.config, self._engine.gripper()
        if closed and not self._closed:
            if self.grasp(here) >= 0:
                here = self._engine.gripper()
        elif not closed and self._closed:
            self._engine.release()
        self._closed = closed
        side = c.workspace
        end = here + velocity * c.speed * self._period()
        end = np.clip(end, (-side, -side, 0), (side, side, self.CEILING))
        steps = round(self._period() / c.timestep)
        self._engine.follow(np.linspace(here, end, steps + 1)[1:])
        self._engine.check()
        held: int = self._engine.held
        return held

    def _period(self) -> float:
        """Return the duration of an action with control=velocity in s, a multiple of timestep."""
        step = self.config.timestep
        return float(step * round(1 / self.config.rate / step))

    def _raise_gripper(self) -> None:
        """Put the empty gripper over the middle of the table."""
        self._closed = False
        if self.config.control == "velocity":
            self._engine.place_gripper(np.array([0.0, 0.0, self.HOVER]))

    def _build(self, config: Any) -> None:
        """Build the engine for these settings, which may differ from the env's by drawn values."""
        self.config = config
        self._engine = engine.make(self.name, config.engine, config=config)

    def _draw_goal(self, rng: np.random.Generator, *, noise: int) -> dict[str, Array]:
        """Return a goal under the current conditions, but with its own sensor noise."""
        state = self.snapshot()
        try:
            if self._conditions is not None:
                self._conditions.state = replace(self._conditions.state, noise=noise)
            self._lay_goal(rng)
            self._raise_gripper()
            return self._observe()
        finally:
            self.rewind(state)

    def _randomise(self, rng: np.random.Generator) -> None:
        """Draw an episode's conditions from a spawn of `rng`, whose own stream does not advance."""
        if self._conditions is not None:
            self._conditions.begin(int(rng.spawn(1)[0].integers(2**62)))
            self._apply()

    def _apply(self) -> None:
        """Set the conditions in the engine, if they have changed."""
        if self._conditions is None or self._conditions.values == self._applied:
            return
        self._applied = self._conditions.values
        drawn = replace(self._nominal, **self._conditions.object())
        if drawn != self.config:
            self._engine.close()
            self._build(drawn)
        for camera in self._conditions.cameras().values():
            self._engine.place_camera(camera)
        self._engine.set_appearance(self._conditions.appearance())

    def _placed(self) -> dict[str, Camera]:
        """Return the cameras in use, by name, at their current poses."""
        return dict(self._cameras) if self._conditions is None else self._conditions.cameras()

    def _randomised(self) -> dict[str, dict[str, float]]:
        return {} if self._conditions is None else {"randomised": dict(self._conditions.values)}

    def _observe(self) -> dict[str, Array]:
        seen = self._sensors.read(self._engine, self._placed(), self._conditions)
        seen["keypoints"] = self._keypoints()
        if self.config.control == "velocity":
            seen["gripper"] = np.append(self._engine.gripper(), self._closed).astype(np.float32)
        if "randomised" in self.data_spec.observation and self._conditions is not None:
            seen["randomised"] = np.array([*self._conditions.per_step().values()], np.float32)
        return seen
