"""The tracking of a planned motion by a `Robot`: joint velocities with feedback to the path."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from latentplan.errors import ConfigError, RobotError, check_range
from latentplan.real_robot.robot import Robot
from latentplan.robots.pick_and_place import Motion
from latentplan.types import Array


@dataclass(frozen=True)
class TrackingResult:
    """The errors and the length of a tracked motion."""

    error: float  # rad, the largest distance of a measured joint from the path
    seconds: float  # on the robot's clock, from the first action to the last
    actions: int  # number of actions sent


class Tracking:
    """A tracking controller: each period, the path's velocity plus a share of the error.

    The velocity is that of the path over the next period, plus `gain` of the measured error, scaled
    down to the limits of the arm's filter, so that the filter changes nothing. Time on the path
    stops while the arm lags, and at a grasp or release until the gripper has moved.
    """

    @dataclass(frozen=True)
    class Config:
        """The feedback gain, and the tolerances of arrival."""

        gain: float = 0.5  # share of the error that is corrected in a period
        behind: float = 0.06  # rad of any joint, above which the path waits
        arrived: float = 0.004  # rad of every joint, at the end
        gripped: float = 0.004  # m, of the gripper's width
        patience: float = 3.0  # s that the path waits, at most

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            check_range("Tracking.gain", self.gain, 0.05, 1)
            check_range("Tracking.behind", self.behind, 1e-3, 1)
            check_range("Tracking.arrived", self.arrived, 1e-4, 0.1)
            check_range("Tracking.gripped", self.gripped, 1e-4, 0.1)
            check_range("Tracking.patience", self.patience, 0.1, 60)

    def __init__(self, robot: Robot, config: Config | None = None, *, width: float) -> None:
        """Take a connected robot under joint velocities; `width`, m, is its gripper's when open."""
        self.robot, self.config, self.width = robot, config or self.Config(), width
        spec = robot.spec
        convention = spec.data.action.convention
        if convention is None or convention.control != "joint_velocity":
            found = "none" if convention is None else convention.control
            raise ConfigError(
                f"safety.control: found {found}, need joint_velocity to follow a motion"
            )
        self._fastest = 0.999 * np.array(spec.velocity)  # (J,) rad/s, rounding aside

    def follow(self, motion: Motion) -> TrackingResult:
        """Follow the motion and return its errors; the arm rests at its end.

        The measured joints must be near the motion's start.
        Raises RobotError, with the arm stopped, if it lags for too long.
        """
        c, period = self.config, self.robot.spec.period
        times = np.arange(len(motion)) * motion.dt
        t, waited, worst, actions, stuck = 0.0, 0.0, 0.0, 0, _Stuck()
        while True:
            seen = self.robot.observe()
            here = _at(times, motion.q, t)
            error = here - seen["q"]
            worst = max(worst, float(np.abs(error).max()))
            pinch = float(np.interp(t, times, motion.gripper))
            holding = stuck.at(float(seen["gripper"][0]), pinch, within=c.gripped)
            done = t >= times[-1]
            if done and holding and np.abs(error).max() <= c.arrived:
                break
            ahead = min(t + period, float(times[-1]))
            # The path waits for a gripper that has not closed, and for an arm that lags.
            changes = _phase(motion, times, ahead) != _phase(motion, times, t)
            if (changes and not holding) or np.abs(error).max() > c.behind or done:
                ahead = t
                waited += period
                if waited > c.patience:
                    raise self._refusal(error, done)
            else:
                waited = 0.0
            wanted = (_at(times, motion.q, ahead) - here + c.gain * error) / period
            excess = float((np.abs(wanted) / self._fastest).max())
            opening = float(np.interp(ahead, times, motion.gripper)) / self.width
            self.robot.send(np.append(wanted / max(excess, 1.0), min(max(opening, 0.0), 1.0)))
            t, actions = ahead, actions + 1
        self._rest(opening=pinch / self.width)
        return TrackingResult(worst, actions * period, actions)

    def _rest(self, *, opening: float) -> None:
        """Stand still."""
        self.robot.send(np.append(np.zeros(len(self._fastest)), min(max(opening, 0.0), 1.0)))

    def _refusal(self, error: Array, done: bool) -> RobotError:
        joint = self.robot.spec.joints[int(np.abs(error).argmax())]
        where = "its end" if done else "its path"
        reason = (
            f"motion: {joint} stays {np.abs(error).max():.3f} rad away from {where} for "
            f"{self.config.patience} s; plan slower, or check what blocks it or the gripper"
        )
        self.robot.stop(reason)
        return RobotError(reason)


class _Stuck:
    """A test whether a gripper has reached its width or holds something."""

    def __init__(self) -> None:
        self._last, self._still = np.inf, 0

    def at(self, width: float, wanted: float, *, within: float) -> bool:
        self._still = self._still + 1 if abs(width - self._last) < 5e-4 else 0
        self._last = width
        return abs(width - wanted) <= within or self._still >= 3


def _at(times: Array, values: Array, t: float) -> Array:
    """Return the row of values (S, J) at t s, linear between samples."""
    place = min(t / times[1], len(times) - 1.0) if len(times) > 1 else 0.0
    low = int(place)
    high = min(low + 1, len(times) - 1)
    found: Array = values[low] + (place - low) * (values[high] - values[low])
    return found


def _phase(motion: Motion, times: Array, t: float) -> int:
    index = min(int(np.searchsorted(times, t - 1e-9)), len(times) - 1)
    return int(motion.phase[index])
