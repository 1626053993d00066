"""The simplest closed loop of an arm: move the end effector to a point, by planned velocities.

It needs no trained model: joint velocities and forward kinematics are the dynamics. It therefore
tests in seconds whether sensors, planner, filter and motors form a loop, simulated or real.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from latentplan import shapes
from latentplan.errors import ConfigError, PlanningError, check_range
from latentplan.planning.latency import Latency
from latentplan.planning.mpc import MPC
from latentplan.protocols import Dynamics, Planner
from latentplan.real_robot.link.remote import RemoteRobot
from latentplan.real_robot.robot import Robot
from latentplan.robots.chain import Chain
from latentplan.robots.description import Arm
from latentplan.types import (
    Array,
    ArraySpec,
    Batch,
    Context,
    Goal,
    Loss,
    Observation,
    Spec,
    Tensors,
)

Triple = tuple[float, float, float]
SHARE = 0.95  # of the filter's velocity limit in plans, so that rounding never exceeds it


class ArmDynamics(nn.Module):
    """A `Dynamics` that needs no data: latents are joint positions (J,), rad.

    A joint moves at the commanded velocity, as behind a filter whose limits are kept. `ee` is the
    forward kinematics, for objectives.
    """

    context = 1

    def __init__(self, arm: Arm, spec: Spec) -> None:
        """Take the arm, and the spec of its joints `q` and of its velocities and gripper."""
        super().__init__()
        if spec.dt is None:
            raise ConfigError("ArmDynamics.spec.dt: found None, need the seconds of an action")
        self.spec, self.dt = spec, spec.dt
        self.latent_dim = len(arm.joints)
        # The matrices of Chain, one a joint, in torch.
        rows, hand = Chain(arm).rows()
        self.register_buffer("rows", torch.tensor(rows, dtype=torch.float32))  # (J, 4, 4)
        self.register_buffer("hand", torch.tensor(hand, dtype=torch.float32))  # (4,)

    def encode(self, observations: Tensors) -> Tensor:
        """Return the joint positions (B, T, J) of the observation `q`."""
        return observations["q"]

    def prepare(self, context: Context) -> Tensor:
        """Return the last joint positions (B, J)."""
        return context.latents[:, -1]

    def rollout(self, prepared: Tensor, actions: Tensor) -> Tensor:
        """Return joint positions (B, N, H, J) after each action (B, N, H, J + 1)."""
        shapes.check("ArmDynamics.actions", actions, "B N H A", A=self.latent_dim + 1)
        return prepared[:, None, None] + self.dt * actions[..., :-1].cumsum(2)

    def loss(self, batch: Batch) -> Loss:
        """Return the mean square error of one batch, rad^2; there is nothing to train."""
        q = self.encode(batch.observations)
        ahead = self.rollout(q[:, 0], batch.actions[:, None])[:, 0]
        total = (ahead - q[:, 1:]).square().mean()
        return Loss(total, {"joints": total.detach()})

    def ee(self, q: Tensor) -> Tensor:
        """Return the positions (..., 3) of the end effector, m, at q (..., J) rad."""
        rows, point = self.get_buffer("rows"), self.get_buffer("hand").expand(*q.shape[:-1], 4)
        for row, angle in zip(rows.flip(0), q.flip(-1).unbind(-1), strict=True):
            c, s = angle.cos(), angle.sin()
            x, y, z, one = point.unbind(-1)
            point = torch.stack([c * x - s * y, s * x + c * y, z, one], dim=-1) @ row
        return point[..., :3]


class PointDistance:
    """The distance of the end effector to a point, mean over the horizon, m, plus effort."""

    def __init__(self, goal: Tensor, *, dynamics: ArmDynamics, effort: float) -> None:
        """Take joints (1, J) that reach the point, and the weight of a (rad/s)^2."""
        self._point = dynamics.ee(goal)[:, None, None]  # (1, 1, 1, 3)
        self._dynamics, self._effort = dynamics, effort

    def __call__(self, latents: Tensor, actions: Tensor) -> Tensor:
        """Return cost (B, N) of joints (B, N, H, J) reached by actions (B, N, H, J + 1)."""
        away: Tensor = (self._dynamics.ee(latents) - self._point).norm(dim=-1).mean(-1)
        return away + self._effort * actions[..., :-1].square().sum(-1).mean(-1)


@dataclass(frozen=True)
class Reached:
    """The outcome of one episode."""

    point: Triple  # m, the target of the end effector
    start: float  # m from the point at the start
    final: float  # m from the point at the end, as measured
    resting: bool  # whether the arm rests at the end
    actions: int  # number of actions sent

    @property
    def success(self) -> bool:
        """Return whether the end effector rests within 2 cm of the point."""
        return self.resting and self.final <= 0.02


class Reach:
    """A task: move the end effector of a `Robot` to points, with a planner on joints alone."""

    @dataclass(frozen=True)
    class Config:
        """The distribution of the points, and the tolerances of arrival."""

        spread: float = 0.5  # rad, range of each joint about home, at a point
        low: Triple = (-0.35, -0.4, 0.15)  # m, corner of the box that points lie in
        high: Triple = (0.35, 0.4, 0.8)  # m, its opposite corner
        away: float = 0.1  # m from the present end effector, at least
        near: float = 0.01  # m from the point, within which the arm stands still
        resting: float = 0.02  # rad/s of the fastest joint, at most
        lag: float = 0.05  # s that an arm lags its commands; the plan starts after it
        effort: float = 0.002  # weight of a (rad/s)^2 against a metre

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            check_range("Reach.spread", self.spread, 0.05, 3)
            check_range("Reach.away", self.away, 0, 1)
            check_range("Reach.near", self.near, 1e-4, 0.02)
            check_range("Reach.resting", self.resting, 1e-4, 1)
            check_range("Reach.lag", self.lag, 0, 1)
            check_range("Reach.effort", self.effort, 0, 10)
            for axis, low, high in zip("xyz", self.low, self.high, strict=True):
                check_range(f"Reach.low.{axis}", low, -10, 10)
                check_range(f"Reach.high.{axis}", high, low + 0.01, 10)

    PLANNER = {"candidates": 256, "iterations": 4, "horizon": 8}  # settings that suit this task

    def __init__(
        self,
        robot: Robot,
        arm: Arm,
        *,
        planner: Planner,
        seed: int = 0,
        config: Config | None = None,
        mpc: MPC.Config | None = None,
    ) -> None:
        """Take a connected robot under joint velocities, its description, and a planner."""
        spec = robot.spec
        convention = spec.data.action.convention
        if convention is None or convention.control != "joint_velocity":
            found = "none" if convention is None else convention.control
            raise ConfigError(f"safety.control: found {found}, need joint_velocity to reach")
        self.robot, self.config = robot, config or self.Config()
        self._chain, self._arm = Chain(arm), arm
        self._rng = np.random.default_rng(seed)
        fastest = [SHARE * v for v in spec.velocity]
        action = replace(spec.data.action, low=(*(-v for v in fastest), 1.0), high=(*fastest, 1.0))
        seen = {"q": ArraySpec((len(arm.joints),), "float32", "joint positions, rad")}
        self._model = ArmDynamics(arm, Spec(seen, action, dt=spec.period))
        self._mpc = MPC(
            self._model,
            planner,
            objective=self._objective,
            seed=seed,
            config=mpc,
        )
        # The first calls of torch are slow, so make them before an arm waits for an action.
        home = {"q": arm.column("home").astype(np.float32)}
        self._mpc.goal(home)
        self._mpc.warm_up()

    def _objective(self, goal: Goal, context: Context, model: Dynamics) -> PointDistance:
        """Return the distance of the end effector to its position at the goal's joints."""
        assert goal.observation is not None
        q = torch.from_numpy(goal.observation["q"])[None]
        return PointDistance(q, dynamics=self._model, effort=self.config.effort)

    def draw(self) -> Array:
        """Return the joints (J,), rad, of a random point to reach."""
        c, arm, spec = self.config, self._arm, self.robot.spec
        here = self._ee(self.robot.observe()["q"])
        for _ in range(10_000):
            q = arm.column("home") + self._rng.uniform(-c.spread, c.spread, len(arm.joints))
            q = np.clip(q, spec.low, spec.high)
            point = self._ee(q)
            inside = ((point >= c.low) & (point <= c.high)).all()
            if inside and np.linalg.norm(point - here) >= c.away:
                return np.asarray(q)
        raise PlanningError(
            f"Reach: no point of the box {c.low} to {c.high} is {c.away} m from the arm and "
            f"within {c.spread} rad of home; widen the box or the spread"
        )

    def episode(
        self, goal: Array, *, steps: int, watch: Callable[[Observation], None] | None = None
    ) -> Reached:
        """Move to the point of joints `goal` (J,) in at most `steps` actions; return the outcome.

        `watch` is called with every observation. Raises RobotError if the arm stops.
        """
        watch = watch or (lambda seen: None)
        c = self.config
        point = self._ee(goal)
        self._mpc.reset()
        self._mpc.goal({"q": goal.astype(np.float32)})
        still = np.append(np.zeros(len(goal)), 1.0).astype(np.float32)
        seen, last, count = self.robot.observe(), still, 0
        watch(seen)
        start = distance = float(np.linalg.norm(self._ee(seen["q"]) - point))
        resting = False
        while count < steps:
            near = distance <= c.near
            resting = bool(np.abs(seen["dq"]).max() <= c.resting)
            if near and resting:
                break
            soon = seen["q"] + c.lag * last[:-1]
            action = still if near else self._mpc.act({"q": soon})
            if isinstance(self.robot, RemoteRobot) and not near:
                self.robot.preview(self._ahead(soon))
            last = self.robot.send(action)
            self._mpc.sent(last)
            count += 1
            seen = self.robot.observe()
            watch(seen)
            distance = float(np.linalg.norm(self._ee(seen["q"]) - point))
            resting = bool(np.abs(seen["dq"]).max() <= c.resting)
        x, y, z = (float(value) for value in point)
        return Reached((x, y, z), start, distance, resting, count)

    def _ahead(self, q: Array) -> Array:
        """Return the path (H, 3) of the end effector in the last plan, m."""
        plan = self._mpc.plan
        assert plan is not None
        start = torch.from_numpy(np.asarray(q, np.float32)).view(1, -1)
        imagined = self._model.rollout(start, plan.actions[:, None])
        ahead: Array = self._model.ee(imagined)[0, 0].numpy()
        return ahead

    @property
    def latency(self) -> Latency:
        """Return the latency of planning."""
        return self._mpc.latency

    def _ee(self, q: Array) -> Array:
        point: Array = self._chain.ee(np.asarray(q, np.float64)[None])[0]
        return point
