"""A task of robosuite as an Env: seeds, exact snapshots, correct images, goals."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict
from gymnasium.utils.seeding import np_random

from latentplan.errors import (
    ConfigError,
    LatentplanError,
    ShapeError,
    UnstablePhysics,
    check_range,
    unknown,
)
from latentplan.protocols import ExpertEnv
from latentplan.shapes import check, check_finite
from latentplan.sim.rendering.cameras import Camera
from latentplan.sim.rendering.mujoco_renderer import mujoco
from latentplan.sim.robosuite import library, state
from latentplan.sim.robosuite.controllers import CONTROLLERS, convention, meaning, settings
from latentplan.sim.robosuite.images import ImageRenderer
from latentplan.types import ActionSpec, Array, ArraySpec, Observation, Spec, Step

ROBOTS = ("Panda", "UR5e", "Sawyer")
CAMERAS = {  # robosuite's name, by name here
    "agentview": "agentview",
    "frontview": "frontview",
    "birdview": "birdview",
    "robotview": "robot0_robotview",
    "eye_in_hand": "robot0_eye_in_hand",
}
KINDS = ("rgb", "depth")
MODEL_SEED = 0  # seed of robosuite's draws for a model, such as the size of a cube
ATTEMPTS = 10  # starts from which `goal` runs the expert


@dataclass(frozen=True)
class RobosuiteConfig:
    """The settings that all tasks share."""

    robot: str = "Panda"  # Panda, UR5e, Sawyer
    controller: str = "osc_pose"  # osc_pose, osc_position, ik_pose, joint_position, joint_velocity
    rate: float = 20.0  # actions per second
    image: int = 64  # side of every image, pixels
    cameras: tuple[str, ...] = ("agentview",)  # cameras in use; [] renders nothing, which is faster
    observe: tuple[str, ...] = ("rgb",)  # images of each: rgb, depth
    shaped: bool = False  # robosuite's shaped reward in place of its sparse one
    stop: bool = True  # an episode terminates when the task has been done for `hold` steps
    hold: int = 5  # steps in a row for which the task must be done

    def __post_init__(self) -> None:
        """Raise ConfigError if a field is out of its range."""
        where = type(self).__qualname__.removesuffix("Config")
        for name, value, known in (
            ("robot", self.robot, ROBOTS),
            ("controller", self.controller, tuple(CONTROLLERS)),
            *(("cameras", camera, tuple(CAMERAS)) for camera in self.cameras),
            *(("observe", kind, KINDS) for kind in self.observe),
        ):
            if value not in known:
                raise ConfigError(f"{where}.{name}: {unknown(name, value, known)}")
        if len(set(self.cameras)) < len(self.cameras):
            raise ConfigError(f"{where}.cameras: found {list(self.cameras)}; name each once")
        check_range(f"{where}.rate", self.rate, 1, 500)
        check_range(f"{where}.image", self.image, 16, 512)
        check_range(f"{where}.hold", self.hold, 1, 1000)


class _State(NamedTuple):
    """The state that `snapshot` returns."""

    simulator: Any
    held: int


class Robosuite(gymnasium.Env[dict[str, Array], Array]):
    """A task of robosuite 1.5 with one arm.

    Observation: `rgb` is the camera agentview, others are `rgb_<camera>`, (image, image, 3) uint8
    with the top row first; `depth_<camera>` (image, image) float32, metres along the camera's axis;
    `ee` (7,) position of the grip site in metres and its orientation, quaternion w, x, y, z; `q`
    and `q_velocity` of the arm, rad and rad/s; `gripper`, its joints. Privileged: one pose (7,) for
    each object of the task, and the keys that the task adds. All in the world frame, float32.

    Action: see `data_spec.action` and its convention. A number out of bounds raises ShapeError,
    whereas robosuite clips it.

    Reward: robosuite's own; with `options["goal"]` in `reset`, an observation, it is minus
    `distance` to that. info holds `success` (robosuite's test) and, with a goal, `distance` in
    metres. Reward and success are those of the returned state; robosuite's lag by 2 ms.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}
    Config = RobosuiteConfig

    name: str  # registry name
    task: str  # robosuite's name
    text: str  # the instruction in natural language
    objects: Mapping[str, str]  # observation key -> robosuite's body
    options: Mapping[str, Any] = {}  # robosuite's options of the task, besides those of the config
    episode_length: int = 200  # actions of an attempt

    def __init__(self, config: RobosuiteConfig | None = None) -> None:
        """Build robosuite's env; MissingDependency if robosuite is not installed."""
        self.config = c = config or self.Config()
        self.render_mode = "rgb_array"
        robosuite = library.load(self.name)
        with state.seeded(MODEL_SEED):
            self._env = robosuite.make(
                self.task,
                robots=c.robot,
                controller_configs=settings(c.controller, robot=c.robot),
                control_freq=c.rate,
                reward_shaping=c.shaped,
                has_renderer=False,
                has_offscreen_renderer=False,
                use_camera_obs=False,
                renderer="mujoco",
                hard_reset=False,
                ignore_done=True,
                **self.options,
            )
        self._model, self._data = self._env.sim.model._model, self._env.sim.data._data
        (self._robot,) = self._env.robots
        self._bodies = {key: self._model.body(name).id for key, name in self.objects.items()}
        self._site = self._robot.eef_site_id["right"]
        self._substeps = int(self._env.control_timestep / self._env.model_timestep)
        self._goal: Observation | None = None
        self._held = 0  # steps in a row for which the task was done
        self._images: ImageRenderer | None = None
        if c.cameras:
            names = {camera: CAMERAS[camera] for camera in c.cameras}
            self._images = ImageRenderer(self._model, cameras=names, size=c.image)
        low, high = (np.asarray(bound, np.float32) for bound in self._env.action_spec)
        part = self._robot.part_controllers["right"]
        has_gripper = len(low) > part.control_dim
        means = convention(c.controller, part, gripper=has_gripper)
        self.data_spec = Spec(
            observation=self._specs(),
            action=ActionSpec(
                low=tuple(low.tolist()),
                high=tuple(high.tolist()),
                meaning=meaning(means),
                convention=means,
            ),
            env=self.name,
            privileged=tuple(self._truth_specs()),
            dt=float(self._substeps * self._env.model_timestep),
        )
        self.action_space = Box(low, high, dtype=np.float32)
        self.observation_space: Dict = Dict(  # type: ignore[assignment]
            {
                key: Box(0, 255, a.shape, np.uint8)
                if a.dtype == "uint8"
                else Box(-np.inf, np.inf, a.shape, np.float32)
                for key, a in self.data_spec.observation.items()
            }
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """Start an episode; the reward refers to `options["goal"]`, see the class."""
        super().reset(seed=seed)
        self._goal = (options or {}).get("goal")
        self._start(self.np_random)
        info: dict[str, Any] = {"task": self.task, "text": self.text}
        return self._observe(), info | ({} if self._goal is None else {"goal": self._goal})

    def step(self, action: Array) -> Step:  # type: ignore[override]
        """Execute an action for `data_spec.dt` seconds, and return the next observation."""
        action = np.asarray(action, np.float64)
        where, spec = f"{type(self).__name__}.action", self.data_spec.action
        check(where, action, "A", A=spec.size)
        check_finite(where, action)
        low, high = np.array(spec.low) - 1e-6, np.array(spec.high) + 1e-6
        if (action < low).any() or (action > high).any():
            raise ShapeError(f"{where}: {action.tolist()} is not within {spec.low} and {spec.high}")
        reward, success = self._advance(action)
        observation = self._observe()
        info: dict[str, Any] = {"success": success}
        if self._goal is not None:
            info["distance"] = self.distance(observation, self._goal)
            reward = -info["distance"]
        return Step(observation, reward, self._done(), False, info)

    def snapshot(self) -> Any:
        """Return the whole state: MuJoCo's, the controllers', the task's."""
        return _State(state.save(self._env), self._held)

    def restore(self, state: Any) -> dict[str, Array]:
        """Restore a `snapshot`; the goal does not change."""
        self._restore(state)
        return self._observe()

    def goal(self, *, seed: int) -> dict[str, Array]:
        """Return the observation of a successful end, which the expert reaches from a seeded start.

        The start is that of `reset(seed=seed)`; if the expert fails, other starts follow from the
        seed. The episode continues unchanged. Raises ConfigError if the task has no expert.
        """
        expert = self._expert()
        before, rng = self.snapshot(), np_random(seed)[0]
        try:
            for _ in range(ATTEMPTS):
                self._start(rng)
                for _ in range(self.episode_length):
                    self._advance(expert(self._truth() | self._proprioception(), rng))
                    if self._held >= self.config.hold:
                        return self._observe()
        finally:
            self._restore(before)
        raise LatentplanError(
            f"{self.name}: the expert failed from all of {ATTEMPTS} starts of seed {seed}"
        )

    @abstractmethod
    def distance(self, observation: Observation, goal: Observation) -> float:
        """Return the task's error in metres between two observations."""

    def oracle(self, observation: Observation, goal: Observation) -> Array:
        """Return the expert's action (A,); it aims at success, at any goal pose.

        Raises ConfigError if the task has no expert.
        """
        action: Array = self._expert()(observation, None)
        return action

    def render(self) -> Array:
        """Return the first camera's image; ConfigError if there is none."""
        if self._images is None:
            raise ConfigError(f"{type(self).__name__}.cameras: found [], which renders nothing")
        return self._images.image(self._data, self.config.cameras[0])

    def cameras(self) -> dict[str, Camera]:
        """Return the cameras in use, by name, at their current poses."""
        if self._images is None:
            return {}
        return {name: self._images.camera(self._data, name) for name in self.config.cameras}

    def close(self) -> None:
        """Free the renderers."""
        if self._images is not None:
            self._images.close()

    def _truth_specs(self) -> dict[str, ArraySpec]:
        """Return the specs of `_truth`; a task adds to them."""
        pose = "position in m, quaternion w x y z, of {} in the world"
        return {key: ArraySpec((7,), "float32", pose.format(key)) for key in self.objects}

    def _truth(self) -> dict[str, Array]:
        """Return the privileged observations; a task adds to them."""
        data = self._data
        return {
            key: np.concatenate([data.xpos[body], data.xquat[body]]).astype(np.float32)
            for key, body in self._bodies.items()
        }

    def _success(self) -> bool:
        return bool(self._env._check_success())

    def _expert(self) -> Any:
        if not isinstance(self, ExpertEnv):
            raise ConfigError(
                f"env {self.name!r} has no expert, and so neither an oracle nor goals; use "
                "an observation of a demonstration as the goal"
            )
        return self.expert

    def _start(self, rng: np.random.Generator) -> None:
        """Reset robosuite; the same number from `rng` gives the same start."""
        with state.seeded(int(rng.integers(2**32))):
            self._env.reset()
        state.refresh(self._env)
        self._held = 0

    def _advance(self, action: Array) -> tuple[float, bool]:
        """Execute an action; return robosuite's reward and whether the task is done.

        The steps are robosuite's own (`MujocoEnv.step`), without its observations.
        """
        env = self._env
        for substep in range(self._substeps):
            env.sim.step1()
            env._pre_action(action, policy_step=substep == 0)
            env.sim.step2()
        env.timestep += 1
        env.cur_time += env.control_timestep
        if state.diverged(env):
            raise UnstablePhysics(f"{self.name}: the simulation diverged; drop the episode")
        state.refresh(env)
        reward, _, _ = env._post_action(action)
        success = self._success()
        self._held = self._held + 1 if success else 0
        return float(reward), success

    def _done(self) -> bool:
        return self.config.stop and self._held >= self.config.hold

    def _restore(self, kept: _State) -> None:
        state.load(self._env, kept.simulator)
        self._held = kept.held

    def _specs(self) -> dict[str, ArraySpec]:
        c, side = self.config, (self.config.image, self.config.image)
        specs = {}
        for camera in c.cameras:
            if "rgb" in c.observe:
                specs[_rgb(camera)] = ArraySpec((*side, 3), "uint8", f"camera {camera}")
            if "depth" in c.observe:
                specs[f"depth_{camera}"] = ArraySpec(
                    side, "float32", f"camera {camera}, m along its axis"
                )
        joints = len(self._robot._ref_joint_pos_indexes)
        fingers = len(self._fingers())
        specs |= {
            "ee": ArraySpec((7,), "float32", "grip site: position in m, quaternion w x y z, world"),
            "q": ArraySpec((joints,), "float32", "joint positions, rad"),
            "q_velocity": ArraySpec((joints,), "float32", "joint velocities, rad/s"),
        }
        if fingers:
            specs["gripper"] = ArraySpec((fingers,), "float32", "its joint positions, m or rad")
        return specs | self._truth_specs()

    def _fingers(self) -> list[int]:
        found: list[int] = self._robot._ref_gripper_joint_pos_indexes["right"]
        return found

    def _proprioception(self) -> dict[str, Array]:
        data, robot = self._data, self._robot
        quaternion = np.empty(4)
        mujoco.mju_mat2Quat(quaternion, data.site_xmat[self._site])
        seen = {
            "ee": np.concatenate([data.site_xpos[self._site], quaternion]),
            "q": data.qpos[robot._ref_joint_pos_indexes],
            "q_velocity": data.qvel[robot._ref_joint_vel_indexes],
        }
        if self._fingers():
            seen["gripper"] = data.qpos[self._fingers()]
        return {key: value.astype(np.float32) for key, value in seen.items()}

    def _observe(self) -> dict[str, Array]:
        seen: dict[str, Array] = {}
        if self._images is not None:
            for camera in self.config.cameras:
                if "rgb" in self.config.observe:
                    seen[_rgb(camera)] = self._images.image(self._data, camera)
                if "depth" in self.config.observe:
                    seen[f"depth_{camera}"] = self._images.depth(self._data, camera)
        return seen | self._proprioception() | self._truth()


def _rgb(camera: str) -> str:
    """Return the key of a camera's image."""
    return "rgb" if camera == "agentview" else f"rgb_{camera}"
