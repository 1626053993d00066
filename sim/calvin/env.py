"""The real calvin_env as an Env: a table with a drawer, a slider, two lights and three blocks."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict

from latentplan.data.selection import resized
from latentplan.errors import (
    ConfigError,
    LatentplanError,
    ShapeError,
    UnstablePhysics,
    check_range,
    unknown,
)
from latentplan.shapes import check, check_finite
from latentplan.sim.calvin import checkout
from latentplan.types import ActionSpec, Array, ArraySpec, Convention, Observation, Spec, Step

RATE = 30  # actions per second
TIMESTEP = 240.0  # physics steps per second
ACTION = 7
ROBOT = "ee x y z m, euler xyz rad, gripper width m, 7 joints rad, gripper action"
SCENE = (
    "slider m, drawer m, button m, switch rad, lightbulb, led; "
    "red, blue, pink block: x y z m, euler xyz rad"
)
BLOCKS = (slice(6, 9), slice(12, 15), slice(18, 21))  # positions in scene_obs
DOORS = slice(0, 2)  # slider and drawer in scene_obs
MOVING, FIXED = (1, -1), (2, ~2)  # Bullet's collision group and mask; fixed bodies do not collide
FARTHEST = 10.0  # m from the origin; beyond it a body has diverged


class Calvin(gymnasium.Env[dict[str, Array], Array]):
    """CALVIN's table and Franka arm (Mees et al. 2022, arXiv 2112.03227), simulated by calvin_env.

    An action (7,) in [-1, 1] moves a target pose of the end effector, which the arm follows:
    x, y, z (1 = 0.02 m) and euler angles x, y, z (1 = 0.05 rad) in the world, then the gripper,
    which opens if the number is not negative and closes otherwise. 30 actions per second.

    Observation: `robot_obs` (15,) and the privileged `scene_obs` (24,) float64, as in the data set,
    and per camera `rgb_<camera>` (h, w, 3) uint8 and, with `depth`, `depth_<camera>` (h, w) float32
    in metres. With cameras=[] a step renders nothing and is 35 times as fast; `render` still works.

    `reset` takes the options `robot_obs` and `scene_obs`, to begin at a frame of a data set (frames
    hold no velocities, so the start is near the frame, not equal to it), and `goal`, an
    observation; with a goal the reward is minus the distance to it. Without one it is 0, and no
    episode terminates: the tasks define success, see `latentplan.evaluation.calvin`.

    Differs from calvin_env: numbers beyond 1 are refused or clipped, never passed on; the gripper's
    number becomes -1 or 1; a reset restores the initial state completely, with contacts, motors and
    the gripper's last command.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": RATE}
    name = "calvin"

    @dataclass(frozen=True)
    class Config:
        """The world and its observations."""

        root: str = ""  # checkout of calvin_env; empty: CALVIN_ENV_ROOT
        scene: str = "D"  # CALVIN's A, B, C or D
        split: str = ""  # folder of a data set (.../training) with scene and cameras to use instead
        cameras: tuple[str, ...] = ("static", "gripper")  # cameras in use; none: fast
        depth: bool = False  # whether cameras give depth, too
        image: int = 0  # side of every image, pixels; 0: as the data set, 200 static, 84 gripper
        clip: bool = False  # clip numbers of an action beyond 1 instead of refusing it

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            if self.scene not in checkout.SCENES:
                raise ConfigError(str(unknown("Calvin.scene", self.scene, checkout.SCENES)))
            for camera in self.cameras:
                if camera not in ("static", "gripper"):
                    known = ("static", "gripper")
                    raise ConfigError(str(unknown("Calvin.cameras", camera, known)))
            if self.image:
                check_range("Calvin.image", self.image, 16, 512)

    def __init__(self, config: Config | None = None) -> None:
        """Build the world; MissingDependency if the checkout or a package is missing."""
        self.config = config or self.Config()
        c = self.config
        self.render_mode = "rgb_array"
        self._sim: Any = None  # calvin_env's own env; None once closed
        self._goal: Observation | None = None
        root = checkout.find(c.root)
        self._settings = checkout.settings(root, scene=c.scene, split=c.split)
        lacking = [name for name in c.cameras if name not in self._settings.cameras]
        if lacking:
            raise ConfigError(f"Calvin.cameras: {c.split} has no camera {lacking[0]!r}")
        module = checkout.simulator(root)
        self._sim = module.PlayTableSimEnv(
            robot_cfg=self._settings.robot,
            scene_cfg=self._settings.scene,
            cameras={},  # `_draw` renders them on request
            seed=0,
            bullet_time_step=TIMESTEP,
            control_freq=RATE,
            use_vr=False,
            show_gui=False,
            use_egl=False,
            use_scene_info=True,
        )
        # calvin_env sets this too, but before a resetSimulation, which clears it.
        self._sim.p.setPhysicsEngineParameter(deterministicOverlappingPairs=1)
        self._colliders = _colliders(self._sim.p)
        self._drawers: dict[str, Any] = {}  # calvin_env's cameras, by name
        self._fresh = self._state()
        self.data_spec = self._spec()
        self.action_space = Box(-1.0, 1.0, (ACTION,), np.float32)
        self.observation_space: Dict = Dict(  # type: ignore[assignment]
            {
                key: Box(0, 255, a.shape, np.uint8)
                if a.dtype == "uint8"
                else Box(-np.inf, np.inf, a.shape, np.dtype(a.dtype).type)
                for key, a in self.data_spec.observation.items()
            }
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """Put arm and table to their start, with random blocks; see the class for `options`."""
        super().reset(seed=seed)
        given = dict(options or {})
        self._goal = given.pop("goal", None)
        robot, scene = (_given(given, key, size) for key, size in _SIZES.items())
        if given:
            known = ", ".join(("goal", *_SIZES))
            raise ConfigError(f"Calvin.reset: no option {sorted(given)[0]!r}; known: {known}")
        if scene is not None:
            scene[4:6] = _lights(scene[4:6])
        self._begin(self.np_random, robot=robot, scene=scene)
        return self._observe(), {} if self._goal is None else {"goal": self._goal}

    def goal(self, *, seed: int) -> dict[str, Array]:
        """Return an observation of the table after a reset; the episode continues.

        The same seed gives the same goal, independent of earlier calls.
        """
        state = self._state()
        try:
            self._begin(np.random.default_rng(seed))
            return self._observe()
        finally:
            self._apply(state)

    def step(self, action: Array) -> Step:  # type: ignore[override]
        """Move the target pose for 1/30 s, see the class, and return the next observation."""
        action = np.array(action, np.float64)
        check("Calvin.action", action, "A", A=ACTION)
        check_finite("Calvin.action", action)
        if self.config.clip:
            action = action.clip(-1, 1)
        elif np.abs(action).max() > 1 + 1e-6:
            raise ShapeError(f"Calvin.action: {action.tolist()} is not within [-1, 1]; or set clip")
        action[6] = 1 if action[6] >= 0 else -1
        sim = self._live()
        sim.robot.apply_action(action)  # as calvin_env's step, without its list of contacts
        for _ in range(sim.action_repeat):
            sim.p.stepSimulation()
        sim.scene.step()
        observation = self._observe()
        if self._goal is None:
            return Step(observation, 0.0, False, False, {})
        distance = self.distance(observation, self._goal)
        return Step(observation, -distance, False, False, {"distance": distance})

    def task_info(self) -> dict[str, Any]:
        """Return calvin_env's present `info`, which the task oracle compares.

        `robot_info` and `scene_info` with poses, joints, lights and PyBullet's contact points.
        """
        info: dict[str, Any] = self._live().get_info()
        return info

    def snapshot(self) -> State:
        """Return the whole state; PyBullet keeps it until its last reference is gone."""
        state = self._state()
        self._apply(state)  # clears contacts, so that the next steps equal those after `restore`
        return state

    def restore(self, state: State) -> dict[str, Array]:
        """Restore a `snapshot` of this env; the goal does not change."""
        self._apply(state)
        return self._observe()

    def distance(self, observation: Observation, goal: Observation) -> float:
        """Return the mean distance of blocks, slider and drawer to their goal positions, m.

        Lights and rotations of the blocks are not lengths and are ignored.
        """
        here, there = observation["scene_obs"], goal["scene_obs"]
        check("goal.scene_obs", there, "S", S=_SIZES["scene_obs"])
        blocks = [np.linalg.norm(here[b] - there[b]) for b in BLOCKS]
        return float(np.mean([*blocks, *np.abs(here[DOORS] - there[DOORS])]))

    def oracle(self, observation: Observation, goal: Observation) -> Array:
        """Raise ConfigError: this env has no expert."""
        raise ConfigError("env 'calvin' has no scripted expert; its data set has human play")

    def render(self) -> Array:
        """Return the static camera's image (h, w, 3) uint8."""
        if "static" not in self._settings.cameras:
            raise ConfigError(f"Calvin.render: {self.config.split} has no camera 'static'")
        return self._draw("static")[0]

    def close(self) -> None:
        """Free the simulator; the env is unusable afterwards."""
        if self._sim is not None:
            self._sim.close()
            self._sim = None

    def _begin(
        self, rng: np.random.Generator, *, robot: Array | None = None, scene: Array | None = None
    ) -> None:
        """Reset table and arm to their start, or to the given observations."""
        sim = self._live()
        self._apply(self._fresh)
        # Env and blocks share this generator object, so set its state.
        drawn = np.random.PCG64(int(rng.integers(2**63)))
        sim.np_random.bit_generator.state = drawn.state
        sim.reset(robot_obs=robot, scene_obs=scene)
        sim.robot.gripper_action = 1 if robot is None or robot[14] >= 0 else -1
        for button in sim.scene.buttons:
            button.prev_is_pressed = button._is_pressed  # so that one held down does not toggle

    def _live(self) -> Any:
        if self._sim is None:
            raise LatentplanError("Calvin: the env is closed; make a new one")
        return self._sim

    def _spec(self) -> Spec:
        observation = {
            "robot_obs": ArraySpec((15,), "float64", ROBOT),
            "scene_obs": ArraySpec((24,), "float64", SCENE),
        }
        for camera in self.config.cameras:
            size = self._size(camera)
            observation[f"rgb_{camera}"] = ArraySpec((*size, 3), "uint8", f"{camera} camera")
            if self.config.depth:
                observation[f"depth_{camera}"] = ArraySpec(size, "float32", f"{camera} camera, m")
        return Spec(
            observation=observation,
            action=ActionSpec(
                low=(-1.0,) * ACTION,
                high=(1.0,) * ACTION,
                meaning="ee target x y z (1 = 0.02 m), euler xyz (1 = 0.05 rad), gripper 1 open",
                convention=Convention(
                    control="ee_delta",
                    rotation="euler_xyz",
                    frame="world",
                    position_unit=0.02,
                    rotation_unit=0.05,
                    gripper="close_is_-1",
                ),
            ),
            env=self.name,
            privileged=("scene_obs",),
            dt=1 / RATE,
        )

    def _size(self, camera: str) -> tuple[int, int]:
        given = self._settings.cameras[camera]
        side = self.config.image
        return (side, side) if side else (int(given["height"]), int(given["width"]))

    def _observe(self) -> dict[str, Array]:
        seen: dict[str, Array] = dict(self._live().get_state_obs())
        places = seen["scene_obs"][np.r_[BLOCKS]]
        if not all(np.isfinite(v).all() for v in seen.values()) or np.abs(places).max() > FARTHEST:
            raise UnstablePhysics("Calvin: a block or the arm left the world; reset the env")
        for camera in self.config.cameras:
            rgb, depth = self._draw(camera)
            seen[f"rgb_{camera}"] = rgb
            if self.config.depth:
                seen[f"depth_{camera}"] = depth
        return seen

    def _draw(self, camera: str) -> tuple[Array, Array]:
        """Return the image (h, w, 3) uint8 and the depth (h, w) float32 in metres."""
        if camera not in self._drawers:
            self._drawers[camera] = self._camera(camera)
        rgb, depth = self._drawers[camera].render()
        size = self._size(camera)
        rgb, depth = np.array(rgb, np.uint8), np.array(depth, np.float32)
        if rgb.shape[:2] != size:  # rendered at the data set's size, then resized as in an import
            rgb, depth = resized(rgb[None], size[0])[0], resized(depth[None], size[0])[0]
        return rgb, depth

    def _camera(self, name: str) -> Any:
        from hydra.utils import instantiate

        sim = self._live()
        return instantiate(
            self._settings.cameras[name], cid=sim.cid, robot_id=sim.robot.robot_uid, objects=None
        )

    def _state(self) -> State:
        sim = self._live()
        robot, scene = sim.robot, sim.scene
        number = sim.p.saveState()
        state = State(
            number=number,
            target=(np.copy(robot.target_pos), np.copy(robot.target_orn), robot.gripper_action),
            buttons=tuple((b.state, b.prev_is_pressed) for b in scene.buttons),
            switches=tuple(s.state for s in scene.switches),
            lights=tuple(light.get_state() for light in scene.lights),
            env=weakref.ref(self),
        )
        weakref.finalize(state, _forget, state.env, number).atexit = False
        return state

    def _apply(self, state: State) -> None:
        sim = self._live()
        if state.env() is not self:
            raise LatentplanError("Calvin.restore: the state is of another env")
        sim.p.restoreState(stateId=state.number)
        # Bullet's contacts are not restored with the bodies; new entries in the broad phase clear
        # them, so that the next steps depend on the state alone.
        for body, link, _ in self._colliders:
            sim.p.setCollisionFilterGroupMask(body, link, 0, 0)
        for body, link, fixed in self._colliders:
            group, mask = FIXED if fixed else MOVING
            sim.p.setCollisionFilterGroupMask(body, link, group, mask)
        # PyBullet restores the bodies; the rest is calvin_env's own state.
        position, turn, sim.robot.gripper_action = state.target
        sim.robot.target_pos, sim.robot.target_orn = position.copy(), turn.copy()
        for button, (on, pressed) in zip(sim.scene.buttons, state.buttons, strict=True):
            button.state, button.prev_is_pressed = on, pressed
        for switch, on in zip(sim.scene.switches, state.switches, strict=True):
            switch.state = on
        for light, on in zip(sim.scene.lights, state.lights, strict=True):
            light.reset(on)


@dataclass(frozen=True, eq=False)
class State:
    """A state of one env: PyBullet's, by its number, and calvin_env's in Python."""

    number: int  # number of PyBullet's saveState
    target: tuple[Array, Array, Any]  # end effector's position and euler angles; gripper
    buttons: tuple[tuple[Any, bool], ...]  # logical state, whether it was down
    switches: tuple[Any, ...]
    lights: tuple[int, ...]  # 1 on, 0 off
    env: weakref.ref[Calvin]


def _colliders(bullet: Any) -> list[tuple[int, int, bool]]:
    """Return (body, link, whether it is fixed) of all colliders; link -1 is the base."""
    found = []
    for body in map(bullet.getBodyUniqueId, range(bullet.getNumBodies())):
        for link in range(-1, bullet.getNumJoints(body)):
            fixed = link < 0 and bullet.getDynamicsInfo(body, link)[0] == 0  # no mass
            found.append((body, link, fixed))
    return found


_SIZES = {"robot_obs": 15, "scene_obs": 24}


def _forget(env: weakref.ref[Calvin], number: int) -> None:
    """Free a state, unless its env is closed: then it is gone, and its number may be reused."""
    owner = env()
    if owner is not None and owner._sim is not None:
        owner._sim.p.removeState(number)


def _given(options: dict[str, Any], key: str, size: int) -> Array | None:
    """Remove an option and return it as (size,) float64; None if it is not given."""
    if options.get(key) is None:
        options.pop(key, None)
        return None
    value = np.array(options.pop(key), np.float64)
    check(f"Calvin.reset.{key}", value, "S", S=size)
    check_finite(f"Calvin.reset.{key}", value)
    return value


def _lights(values: Array) -> Array:
    """Return lightbulb and led as exactly 0 or 1; a store may have rounded them."""
    whole = np.rint(values)
    if not np.isin(whole, (0, 1)).all() or np.abs(values - whole).max() > 1e-3:
        raise ShapeError(f"Calvin.reset.scene_obs: lights are {values.tolist()}, need 0 or 1 each")
    return whole
