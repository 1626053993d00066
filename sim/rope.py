"""A rope on a table, moved by pick-and-drag: MuJoCo, seen from above.

The task is that of the contrastive forward model (Yan et al. 2020, arXiv 2003.05436, section 4):
bring the rope into the shape of a goal picture. It differs from the paper's env: an explicit
chain instead of MuJoCo's `composite`, a lift-move-lower path of a gripper that holds one link
instead of a push along the table, and goals drawn from the distribution of starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict

from latentplan.errors import ShapeError, UnstablePhysics, check_range
from latentplan.shapes import check, check_finite
from latentplan.sim import render
from latentplan.sim.render import mujoco
from latentplan.types import ActionSpec, Array, ArraySpec, Observation, PickSpec, Spec, Step

CAMERA_HEIGHT = 1.0  # m above the table
STATE = mujoco.mjtState.mjSTATE_INTEGRATION  # everything that the next mj_step depends on


class Rope(gymnasium.Env[dict[str, Array], Array]):
    """A rope on a table, brought into the shape of a goal picture by pick-and-drag.

    Action (4,) in [-1, 1]: pick (x, y), drag (dx, dy).

    The pick (x, y) is a point of the picture, +-1 at its edges (x right, y up), which are +-`view`
    metres on the table. It snaps to the nearest link; farther than `pick_radius` from any link the
    gripper closes on air: nothing is moved, `info["picked"]` is -1. The drag is in units of
    `drag` metres, and its end is clipped to +-`workspace`; invisible walls keep the rope in view.
    After the move the rope is let go and comes to rest; an observation always shows it at rest.

    Observation: `rgb` (image, image, 3) uint8, and the privileged `keypoints` (links + 1, 2)
    float32, metres, from end to end. Reward: minus `distance` to `options["goal"]` where `reset`
    was given one, else 0. Never terminates by itself. Raises UnstablePhysics where the simulation
    diverges; reset it then.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 2}

    @dataclass(frozen=True)
    class Config:
        """Lengths in metres, masses in kilograms."""

        links: int = 20
        length: float = 0.4
        radius: float = 0.009
        mass: float = 0.04  # of the whole rope
        friction: float = 1.0  # sliding, rope on table
        stiffness: float = 0.0  # N m/rad at every joint
        damping: float = 2e-3  # N m s/rad at every joint
        bend: float = 0.2  # rad between links (smoothed) of the most bent shape that a reset draws
        image: int = 64  # pixels a side of `rgb`
        view: float = 0.3  # half the side of the table that the picture shows
        workspace: float = 0.25  # |x|, |y| of the end of a drag at most
        drag: float = 0.1  # length of a drag of 1 along one axis
        pick_radius: float = 0.03  # a pick farther from every link grasps nothing
        timestep: float = 0.008  # s
        move_steps: int = 40  # physics steps of a drag
        rest_steps: int = 16  # physics steps after letting go

        def __post_init__(self) -> None:
            """Raise ConfigError where a field is out of its range."""
            check_range("Rope.links", self.links, 2, 200)
            for name in ("length", "radius", "mass", "view", "workspace", "drag", "pick_radius"):
                check_range(f"Rope.{name}", getattr(self, name), 1e-4, 10)
            check_range("Rope.friction", self.friction, 0, 10)
            check_range("Rope.stiffness", self.stiffness, 0, 1)
            check_range("Rope.damping", self.damping, 0, 1)
            check_range("Rope.image", self.image, 16, 512)
            check_range("Rope.workspace", self.workspace, 0, self.view)
            check_range("Rope.length", self.length, 0, 2 * self.workspace)
            check_range("Rope.timestep", self.timestep, 1e-4, 0.01)
            check_range("Rope.move_steps", self.move_steps, 1, 10_000)
            check_range("Rope.rest_steps", self.rest_steps, 0, 10_000)

    LIFT = 0.03  # m, height of the middle of a drag

    def __init__(self, config: Config | None = None) -> None:
        """Build the model; rendering is checked when the first picture is taken."""
        self.config = config or self.Config()
        self.render_mode = "rgb_array"
        self._model = mujoco.MjModel.from_xml_string(_xml(self.config))
        self._data = mujoco.MjData(self._model)
        self._state = np.empty(mujoco.mj_stateSize(self._model, STATE))
        self._camera: render.Camera | None = None
        self._model.eq_data[0, 3:6] = self.config.length / self.config.links / 2, 0, 0  # centre
        self._goal: Observation | None = None
        c = self.config
        self.data_spec = Spec(
            observation={
                "rgb": ArraySpec((c.image, c.image, 3), "uint8", "camera above the table"),
                "keypoints": ArraySpec((c.links + 1, 2), "float32", "rope from end to end, m"),
            },
            action=ActionSpec(
                low=(-1.0,) * 4,
                high=(1.0,) * 4,
                meaning=f"pick x, y (1 = {c.view} m), drag x, y (1 = {c.drag} m)",
            ),
            env="rope",
            privileged=("keypoints",),
            pick=PickSpec(image="rgb", low=(120, 120, 120)),
        )
        self.action_space = Box(-1.0, 1.0, (4,), np.float32)
        self.observation_space: Dict = Dict(  # type: ignore[assignment]
            rgb=Box(0, 255, (c.image, c.image, 3), np.uint8),
            keypoints=Box(-np.inf, np.inf, (c.links + 1, 2), np.float32),
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """Lay the rope down in a random smooth shape that does not cross itself.

        `options["goal"]` (an observation) makes rewards; see the class.
        """
        super().reset(seed=seed)
        self._goal = (options or {}).get("goal")
        mujoco.mj_resetData(self._model, self._data)
        heading, bends, centre = self._random_shape()
        self._data.qpos[:2] = centre
        self._data.qpos[3:7] = np.cos(heading / 2), 0, 0, np.sin(heading / 2)
        self._data.qpos[7::2] = bends  # the joints that turn about the vertical
        for _ in range(self.config.rest_steps):
            mujoco.mj_step(self._model, self._data)
        self._come_to_rest()
        return self._observe(), {}

    def step(self, action: Array) -> Step:  # type: ignore[override]
        """Pick, lift, move, lower, let go, and wait until the rope rests."""
        action = np.asarray(action, np.float64)
        check("Rope.action", action, "A", A=4)
        check_finite("Rope.action", action)
        if np.abs(action).max() > 1 + 1e-6:
            raise ShapeError(f"Rope.action: {action.tolist()} is not within [-1, 1]")
        c = self.config
        pick, drag = action[:2] * c.view, action[2:] * c.drag
        links = self._data.xipos[1 : c.links + 1, :2]  # their centres; body 0 is the world
        gap = np.linalg.norm(links - pick, axis=1)
        link = int(gap.argmin())
        picked = link if gap[link] <= c.pick_radius else -1
        if picked >= 0:
            target = np.clip(links[link] + drag, -c.workspace, c.workspace)
            self._move(link + 1, target)
        else:
            mujoco.mj_step(self._model, self._data, c.move_steps)
        mujoco.mj_step(self._model, self._data, c.rest_steps)
        self._come_to_rest()
        observation = self._observe()
        reward = -self.distance(observation, self._goal) if self._goal is not None else 0.0
        return Step(observation, reward, False, False, {"picked": picked})

    def snapshot(self) -> Array:
        """Return the simulator's state as a vector."""
        mujoco.mj_getState(self._model, self._data, self._state, STATE)
        return self._state.copy()

    def restore(self, state: Array) -> dict[str, Array]:
        """Go back to a `snapshot`."""
        check("Rope.restore", state, "n", n=len(self._state))
        mujoco.mj_setState(self._model, self._data, state, STATE)
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_comPos(self._model, self._data)
        return self._observe()

    def distance(self, observation: Observation, goal: Observation) -> float:
        """Return the mean distance of the points in metres, in the better of the two orders."""
        return float(np.linalg.norm(_ordered(observation, goal), axis=1).mean())

    def oracle(self, observation: Observation, goal: Observation) -> Array:
        """Return the action that brings the link farthest from its place there."""
        error = _ordered(observation, goal)
        to_goal = (error[1:] + error[:-1]) / 2  # of the links' centres
        points = observation["keypoints"]
        centres = (points[1:] + points[:-1]) / 2
        worst = int(np.linalg.norm(to_goal, axis=1).argmax())
        pick, drag = centres[worst] / self.config.view, to_goal[worst] / self.config.drag
        action: Array = np.clip(np.concatenate([pick, drag]), -1, 1).astype(np.float32)
        return action

    def render(self) -> Array:
        """Return the picture that `rgb` holds."""
        if self._camera is None:
            render.self_test()
            self._camera = render.Camera(self._model, "top", size=self.config.image)
        return self._camera.picture(self._data)

    def close(self) -> None:
        """Free the pictures' resources."""
        if self._camera is not None:
            self._camera.close()
            self._camera = None

    def _random_shape(self) -> tuple[float, Array, Array]:
        """Return heading (rad), bends between links (rad) and the first end (m) of a new rope."""
        c = self.config
        step = c.length / c.links
        while True:
            heading = self.np_random.uniform(-np.pi, np.pi)
            scale = self.np_random.uniform(0.05, self.config.bend) * np.sqrt(20 / c.links)
            noise = self.np_random.normal(0, scale, c.links + 3)
            bends = np.convolve(noise, np.ones(5) / 2, "valid")  # smooth over five links
            angles = heading + np.concatenate([[0], np.cumsum(bends)])
            points = np.zeros((c.links + 1, 2))
            points[1:] = np.cumsum(step * np.stack([np.cos(angles), np.sin(angles)], 1), axis=0)
            reach = c.workspace - c.radius
            low, high = -reach - points.min(0), reach - points.max(0)
            gaps = np.linalg.norm(points[:, None] - points[None], axis=2)
            apart = np.abs(np.subtract.outer(np.arange(len(points)), np.arange(len(points)))) > 3
            if (low < high).all() and (gaps[apart] > 3 * c.radius).all():
                return heading, bends, self.np_random.uniform(low, high)

    def _move(self, body: int, target: Array) -> None:
        """Carry `body` to `target` (2,) along an arc and let it go."""
        model, data, steps = self._model, self._data, self.config.move_steps
        start = data.xipos[body].copy()
        # Three quarters of the time to get there, the rest to arrive.
        way = np.minimum(np.arange(1, steps + 1) / (0.75 * steps), 1.0)
        way = way * way * (3 - 2 * way)  # starts and ends slowly
        path = np.empty((steps, 3))
        path[:, :2] = start[:2] + way[:, None] * (target - start[:2])
        path[:, 2] = start[2] + self.LIFT * np.sin(np.pi * way)
        model.eq_obj2id[0] = body  # the gripper's grasp: a soft pin at the link's centre
        data.eq_active[0] = 1
        for point in path:
            data.mocap_pos[0] = point
            mujoco.mj_step(model, data)
        data.eq_active[0] = 0

    def _come_to_rest(self) -> None:
        """Stop what still moves; raise UnstablePhysics where the simulation diverged.

        A rope at rest makes the next state depend on the picture and the action alone.
        """
        data = self._data
        diverged = any(
            data.warning[w].number
            for w in (
                mujoco.mjtWarning.mjWARN_BADQPOS,
                mujoco.mjtWarning.mjWARN_BADQVEL,
                mujoco.mjtWarning.mjWARN_BADQACC,
            )
        )
        if diverged or not np.isfinite(data.qpos).all():
            raise UnstablePhysics("rope: the simulation diverged; reset and drop the episode")
        data.qvel[:] = 0
        data.qacc_warmstart[:] = 0
        mujoco.mj_kinematics(self._model, data)
        mujoco.mj_comPos(self._model, data)

    def _observe(self) -> dict[str, Array]:
        tip = self._data.site_xpos[0]
        points = np.concatenate([self._data.xpos[1 : self.config.links + 1], tip[None]])[:, :2]
        return {"rgb": self.render(), "keypoints": points.astype(np.float32)}


def _ordered(observation: Observation, goal: Observation) -> Array:
    """Return what is missing to the goal, (points, 2) metres, in the better order of the rope."""
    points, target = observation["keypoints"], goal["keypoints"]
    check("goal.keypoints", target, "points xy", points=len(points), xy=2)
    forward, backward = target - points, target[::-1] - points
    better = np.linalg.norm(forward, axis=1).mean() <= np.linalg.norm(backward, axis=1).mean()
    return np.asarray(forward if better else backward)


def _xml(c: Rope.Config) -> str:
    """Return the MJCF of a rope: a chain of bodies with two hinges each.

    Only spheres at the links' centres touch the table, one contact a link; the capsules are for
    the eye. This is twice as fast as capsules that touch. The armature keeps light links stable
    at a large timestep. No `composite`, so that it loads in MuJoCo 3 and 4.
    """
    step = c.length / c.links
    joint = f'damping="{c.damping}" armature="2e-4"'
    hinge = f'{joint} stiffness="{c.stiffness}"'
    chain = ""
    for i in reversed(range(c.links)):
        end = f'<site pos="{step} 0 0" size="1e-3" rgba="0 0 0 0"/>' if i == c.links - 1 else ""
        joints = (
            f'<joint type="free" {joint}/>'
            if i == 0
            else f'<joint axis="0 0 1" {hinge}/><joint axis="0 1 0" {hinge}/>'
        )
        chain = (
            f'<body name="link{i}" pos="{step if i else 0} 0 {0 if i else c.radius}">{joints}'
            f'<geom type="sphere" pos="{step / 2} 0 0" size="{c.radius}" mass="{c.mass / c.links}"'
            f' contype="0" conaffinity="1" friction="{c.friction} 0.005 1e-4" group="3"/>'
            f'<geom type="capsule" fromto="0 0 0 {step} 0 0" size="{c.radius}" mass="0"'
            f' contype="0" conaffinity="0" rgba="1 .92 .84 1"/>{end}{chain}</body>'
        )
    # Walls that the camera does not see, so that a tail that swings out stays in the picture.
    edge = c.view - c.radius / 2
    walls = "".join(
        f'<geom type="plane" pos="{-edge * x} {-edge * y} 0" zaxis="{x} {y} 0" size="1 1 .1"'
        f' contype="1" conaffinity="0" friction="0.1" rgba="0 0 0 0"/>'
        for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1))
    )
    fovy = np.degrees(2 * np.arctan2(c.view, CAMERA_HEIGHT - c.radius))
    return f"""<mujoco model="rope">
      <option timestep="{c.timestep}" integrator="implicitfast" cone="pyramidal" iterations="8">
        <flag autoreset="disable"/>
      </option>
      <visual>
        <quality shadowsize="0" offsamples="0" numslices="8" numstacks="4" numquads="2"/>
        <global offwidth="512" offheight="512"/>
        <headlight ambient=".4 .4 .4" diffuse=".6 .6 .6" specular="0 0 0"/>
      </visual>
      <worldbody>
        <camera name="top" pos="0 0 {CAMERA_HEIGHT}" fovy="{fovy}"/>
        <geom type="plane" size="2 2 .1" rgba=".18 .45 .34 1" contype="1" conaffinity="0"/>
        {walls}
        {chain}
        <body name="gripper" mocap="true"/>
      </worldbody>
      <equality>
        <connect body1="gripper" body2="link0" anchor="0 0 0" active="false" solref="0.03 1"/>
      </equality></mujoco>"""
