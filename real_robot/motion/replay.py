"""The replay of a recorded episode on an arm: its actions go through the safety filter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from latentplan.errors import ConfigError, StoreError, check_range
from latentplan.real_robot.motion.hold_position import hold_position_while
from latentplan.real_robot.motion.tracking import Tracking
from latentplan.real_robot.robot import Robot
from latentplan.robots.description import Arm
from latentplan.robots.pick_and_place import PickAndPlace
from latentplan.robots.trajectory import Limits
from latentplan.types import Array, Episode, Spec


@dataclass(frozen=True)
class ReplayResult:
    """The errors of a replay against the recording."""

    error: Array  # (L + 1, J) rad, measured in the replay less recorded
    actions: int

    @property
    def worst(self) -> float:
        """Return the largest error of a joint, rad."""
        return float(np.abs(self.error).max())

    @property
    def mean(self) -> float:
        """Return the mean error over joints and time, rad."""
        return float(np.abs(self.error).mean())


class Replay:
    """A replay: the arm moves to the start of an episode, then executes its actions."""

    @dataclass(frozen=True)
    class Config:
        """The feedback of the replay, and the motion to its start."""

        gain: float = 0.0  # share of the distance to the recorded joints corrected in a period
        near: float = 0.02  # rad of any joint from the start; a farther arm moves there first
        share: float = 0.5  # of the filter's limits, in the motion to the start

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            check_range("Replay.gain", self.gain, 0, 1)
            check_range("Replay.near", self.near, 1e-3, 0.5)
            check_range("Replay.share", self.share, 0.01, 0.9)

    def __init__(self, robot: Robot, arm: Arm, config: Config | None = None) -> None:
        """Take a connected robot and its description."""
        self.robot, self.arm, self.config = robot, arm, config or self.Config()
        self._control = _control(robot.spec.data)
        if self.config.gain and self._control != "joint_velocity":
            raise ConfigError(
                f"Replay.gain: found {self.config.gain} under {self._control}; feedback is for "
                "joint_velocity"
            )

    def play(self, episode: Episode, *, spec: Spec) -> ReplayResult:
        """Replay `episode`, described by `spec`, and return the arm's errors against it.

        Raises StoreError, and nothing moves, if the episode is of another arm or control;
        Unreachable if there is no free path to its start; RobotError if the arm stops.
        """
        self._check(spec)
        recorded = episode.observations["q"].astype(np.float64)
        self._go(recorded[0])
        gain, period = self.config.gain, self.robot.spec.period
        error, fastest = [], 0.999 * np.array(self.robot.spec.velocity)
        for action, there in zip(episode.actions, recorded, strict=False):
            error.append(self.robot.observe()["q"] - there)
            wanted = action.astype(np.float64)
            if gain:
                wanted[:-1] -= gain * error[-1] / period
                wanted[:-1] /= max(1.0, float((np.abs(wanted[:-1]) / fastest).max()))
            self.robot.send(wanted)
        error.append(self.robot.observe()["q"] - recorded[-1])
        return ReplayResult(np.stack(error), len(episode.actions))

    def _check(self, spec: Spec) -> None:
        here = self.robot.spec
        wrong = []
        if "q" not in spec.observation:
            wrong.append("it has no joint positions q")
        elif spec.observation["q"].shape != (len(here.joints),):
            joints = spec.observation["q"].shape
            wrong.append(f"its joints are {joints}, the arm's ({len(here.joints)},)")
        size, need = spec.action.size, here.data.action.size
        if size != need:
            wrong.append(f"its actions have {size} numbers, here {need}")
        if _control(spec) != self._control:
            wrong.append(f"its control is {_control(spec) or 'unknown'}, here {self._control}")
        if spec.dt is None or abs(spec.dt - here.period) > 1e-9:
            wrong.append(f"an action holds {spec.dt} s, here {here.period} s")
        if wrong:
            raise StoreError(
                f"episode: does not fit the arm {here.name}: {'; '.join(wrong)}; replay it on the "
                "arm and with the settings that it was recorded with"
            )

    def _go(self, start: Array) -> None:
        """Move the arm to `start` (J,), rad, straight in joints."""
        spec, c = self.robot.spec, self.config
        q = self.robot.observe()["q"].astype(np.float64)
        if np.abs(start - q).max() <= c.near:
            return
        if self._control != "joint_velocity":
            raise StoreError(
                f"episode: begins {np.abs(start - q).max():.2f} rad from the arm; move it "
                f"there first, because a replay under {self._control} does not"
            )
        shares = (np.array(v) * c.share for v in (spec.velocity, spec.acceleration, spec.jerk))
        limits = Limits(*shares)
        motion = hold_position_while(
            self.robot, lambda: PickAndPlace(self.arm, limits=limits).straight(q, start)
        )
        Tracking(self.robot, width=self.arm.gripper.width).follow(motion)


def _control(spec: Spec) -> str:
    return "" if spec.action.convention is None else spec.action.convention.control
