"""A stand-in for RLBench, PyRep and CoppeliaSim with their names and parameters.

`rlbench_interface.json` holds the classes, methods and parameters of the real sources, at the
commits that it names; classes that are settings alone are made from it, so that a parameter that
the real one has not raises TypeError. The world behind it is three lines: the tip's position is
linear in the joints, and the task, reach_target, is done where the tip is at the ball.
"""

from __future__ import annotations

import inspect
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import rlbench_writer as writer

INTERFACE = json.loads((Path(__file__).parent / "rlbench_interface.json").read_text())["callables"]
HOME = np.array([0, 0, 0, -1.5, 0, 1.5, 0])
TIP = np.array([0.28, 0.0, 1.47])
JACOBIAN = np.random.default_rng(5).normal(0, 0.3, (3, 7))  # m / rad
REACHED = 0.02  # m
PARALLEL = np.array([0.0, 1.0, 0.0, 0.0])


def settings(name: str, base: type = object) -> type:
    """Return a class that keeps what the real one's constructor takes, and takes nothing else."""
    names = INTERFACE.get(f"{name}.__init__", ["self"])[1:]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        parameters = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in names]
        found = inspect.Signature(parameters).bind_partial(*args, **kwargs).arguments
        for key in names:
            setattr(self, key, found.get(key))

    assert name in INTERFACE
    return type(name.rpartition(".")[2], (base,), {"__init__": __init__})


def error(name: str) -> type:
    assert INTERFACE[name] == ["Exception"]
    return type(name.rpartition(".")[2], (Exception,), {})


MODES = INTERFACE["pyrep.const.RenderMode"]
ARMS = "rlbench.action_modes.arm_action_modes"
InvalidActionError = error("rlbench.backend.exceptions.InvalidActionError")
TaskEnvironmentError = error("rlbench.backend.exceptions.TaskEnvironmentError")
InvalidTaskName = error("rlbench.utils.InvalidTaskName")
PyRepError = error("pyrep.errors.PyRepError")
Observation = settings("rlbench.backend.observation.Observation")
CameraConfig = settings("rlbench.observation_config.CameraConfig")
ActionMode = settings("rlbench.action_modes.action_mode.ActionMode")


class ObservationConfig(settings("rlbench.observation_config.ObservationConfig")):
    def set_all_low_dim(self, value: bool) -> None:
        self.low_dim = value


class Demo(settings("rlbench.demo.Demo")):
    def __len__(self) -> int:
        return len(self.observations)

    def __getitem__(self, i: int) -> Any:
        return self.observations[i]


class Environment:
    broken: type[Exception] | None = None  # what the simulator raises when it starts

    def __init__(
        self,
        action_mode,
        dataset_root="",
        obs_config=None,
        headless=False,
        static_positions=False,
        robot_setup="panda",
        randomize_every=None,
        frequency=1,
        visual_randomization_config=None,
        dynamics_randomization_config=None,
        attach_grasped_objects=True,
        shaped_rewards=False,
        arm_max_velocity=1.0,
        arm_max_acceleration=4.0,
    ) -> None:
        self.action_mode, self.obs_config = action_mode, obs_config
        self.headless, self.robot_setup = headless, robot_setup
        self.running = False

    def get_task(self, task_class: type) -> TaskEnvironment:
        if self.broken is not None:
            raise self.broken("COPPELIASIM_ROOT was not a correct path.")
        self.running = True
        return TaskEnvironment(self, task_class)

    def shutdown(self) -> None:
        self.running = False


class TaskEnvironment:
    fails: list[Exception] = []  # what the next calls raise: of `step`, of `reset`, or a demo's

    def __init__(self, world: Environment, task: type) -> None:
        self._world, self._task, self._variation = world, task, 0
        self.q = self.opened = self.ball = None

    def variation_count(self) -> int:
        return 20

    def set_variation(self, v: int) -> None:
        self._variation = v

    def reset(self, demo=None) -> tuple[list[str], Any]:
        if self.fails and isinstance(self.fails[0], TaskEnvironmentError):
            raise self.fails.pop(0)
        self.q, self.qd, self.opened = HOME.copy(), np.zeros(7), 1.0
        offset = np.random.uniform(-0.1, 0.1, 3) + (0.02 * random.random(), 0, -0.5)
        self.ball = TIP + offset
        names = ["red", "green"] + [f"colour {i}" for i in range(2, 20)]
        return [f"reach the {names[self._variation]} target", "touch it"], self.get_observation()

    def get_observation(self) -> Any:
        c = self._world.obs_config
        seen, misc = {}, {"variation_index": self._variation}
        for camera, (eye, far) in writer.EYES.items():
            camera_config = getattr(c, f"{camera}_camera")
            size = camera_config.image_size[0]
            drawn = writer.view(camera, self.ball, size, np.random.default_rng(0))
            for kind in ("rgb", "depth", "mask", "point_cloud"):
                wanted = getattr(camera_config, kind)
                seen[f"{camera}_{kind}"] = drawn.get(kind) if wanted else None
            if camera_config.mask:
                assert camera_config.masks_as_one_channel is False
                handle = drawn["mask"]
                coded = np.stack([handle & 255, handle >> 8 & 255, handle >> 16], -1)
                seen[f"{camera}_mask"] = coded.astype(np.float32) / np.float32(255)
            if camera_config.rgb or camera_config.depth or camera_config.point_cloud:
                assert camera_config.depth_in_meters
                misc |= {
                    f"{camera}_camera_extrinsics": writer.pose(eye),
                    f"{camera}_camera_intrinsics": writer.lens(size),
                    f"{camera}_camera_near": writer.NEAR,
                    f"{camera}_camera_far": far,
                }
        assert c.low_dim
        return Observation(
            **seen,
            joint_velocities=self.qd.copy(),
            joint_positions=self.q.copy(),
            joint_forces=np.zeros(7),
            gripper_open=self.opened,
            gripper_pose=np.concatenate([self.tip(), PARALLEL]),
            gripper_joint_positions=np.full(2, 0.04 * self.opened),
            gripper_touch_forces=np.zeros(6),
            task_low_dim_state=self.ball.copy(),
            misc=misc,
        )

    def tip(self) -> np.ndarray:
        return TIP + JACOBIAN @ (self.q - HOME)

    def step(self, action) -> tuple[Any, float, bool]:
        if self.fails:
            raise self.fails.pop(0)
        mode = self._world.action_mode
        arm, gripper = action[:7], action[7]
        kind = type(mode.arm_action_mode).__name__
        before = self.q
        if kind == "JointPosition":
            self.q = np.array(arm)
        elif kind == "JointVelocity":
            self.q = self.q + np.array(arm) * 0.05
        else:
            if not np.isclose(np.linalg.norm(arm[3:]), 1.0):
                raise InvalidActionError("Action contained non unit quaternion!")
            away = np.linalg.norm(arm[:3] - self.tip())
            if arm[2] < 0.7 or (kind == "EndEffectorPoseViaIK" and away > 0.2):
                raise InvalidActionError("A path could not be found.")
            self.q = HOME + np.linalg.pinv(JACOBIAN) @ (arm[:3] - TIP)
        self.qd = (self.q - before) / 0.05
        self.opened = float(gripper > 0.5)
        done = bool(np.linalg.norm(self.tip() - self.ball) < REACHED)
        return self.get_observation(), float(done), done

    def get_demos(
        self,
        amount,
        live_demos=False,
        image_paths=False,
        callable_each_step=None,
        max_attempts=10,
        random_selection=True,
        from_episode_number=0,
    ) -> list[Any]:
        assert live_demos and amount == max_attempts == 1
        state = np.random.get_state()
        if self.fails:
            raise self.fails.pop(0)
        seen = [self.reset()[1]]
        end = HOME + np.linalg.pinv(JACOBIAN) @ (self.ball - TIP)
        for part in (1 - np.cos(np.linspace(0, np.pi, 31)[1:])) / 2:
            before, self.q = self.q, HOME + part * (end - HOME)
            self.qd = (self.q - before) / 0.05
            seen.append(self.get_observation())
        return [Demo(seen, random_seed=state)]


def name_to_task_class(task_file: str) -> type:
    if task_file != "reach_target":
        raise InvalidTaskName(f"The task file '{task_file}' does not exist or cannot be compiled.")
    return type("ReachTarget", (), {})


def modules() -> dict[str, ModuleType]:
    """Return what `import` shall find, by name."""
    contents: dict[str, dict[str, Any]] = {
        "rlbench": {},
        "rlbench.action_modes": {},
        "rlbench.backend": {},
        "rlbench.environment": {"Environment": Environment},
        ARMS: {
            name: settings(f"{ARMS}.{name}")
            for name in (
                "JointPosition",
                "JointVelocity",
                "EndEffectorPoseViaIK",
                "EndEffectorPoseViaPlanning",
            )
        },
        "rlbench.action_modes.gripper_action_modes": {
            "Discrete": settings("rlbench.action_modes.gripper_action_modes.Discrete")
        },
        "rlbench.action_modes.action_mode": {
            "MoveArmThenGripper": type("MoveArmThenGripper", (ActionMode,), {})
        },
        "rlbench.backend.exceptions": {
            "InvalidActionError": InvalidActionError,
            "TaskEnvironmentError": TaskEnvironmentError,
        },
        "rlbench.observation_config": {
            "CameraConfig": CameraConfig,
            "ObservationConfig": ObservationConfig,
        },
        "rlbench.utils": {
            "InvalidTaskName": InvalidTaskName,
            "name_to_task_class": name_to_task_class,
        },
        "pyrep": {},
        "pyrep.const": {"RenderMode": type("RenderMode", (), {mode: mode for mode in MODES})},
        "pyrep.errors": {"PyRepError": PyRepError},
    }
    made = {}
    for name, inside in contents.items():
        made[name] = ModuleType(name)
        vars(made[name]).update(inside)
    return made


@contextmanager
def installed(monkeypatch) -> Iterator[None]:
    """Let `import rlbench` find the stand-in."""
    import sys

    with monkeypatch.context() as patch:
        for name, module in modules().items():
            patch.setitem(sys.modules, name, module)
        patch.setattr(TaskEnvironment, "fails", [])
        patch.setattr(Environment, "broken", None)
        yield
