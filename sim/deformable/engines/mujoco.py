"""The base of the MuJoCo engines: the gripper, the state, the images."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from latentplan.errors import UnstablePhysics
from latentplan.shapes import check
from latentplan.sim.deformable.engines.engine import Kind
from latentplan.sim.rendering import mujoco_renderer
from latentplan.sim.rendering.appearance import TILE, Appearance
from latentplan.sim.rendering.cameras import Camera
from latentplan.sim.rendering.mujoco_renderer import mujoco
from latentplan.types import Array

TILES = 8  # tiles of the table's pattern along its 4 m
STATE = mujoco.mjtState.mjSTATE_INTEGRATION  # all inputs of the next mj_step
_DIVERGED = (
    mujoco.mjtWarning.mjWARN_BADQPOS,
    mujoco.mjtWarning.mjWARN_BADQVEL,
    mujoco.mjtWarning.mjWARN_BADQACC,
)


class MujocoEngine:
    """An object whose grips are bodies, and a mocap body `gripper` with a soft pin to one of them.

    The MJCF holds a geom `table`, a mocap body `gripper` and, as its first equality, a `connect`
    from it to any body of the object. All geoms but the world's belong to the object.
    """

    def __init__(
        self, xml: str, *, name: str, bodies: range, cameras: Mapping[str, Camera]
    ) -> None:
        """Build the model; `bodies` are the grips."""
        self._name = name
        self._model = mujoco.MjModel.from_xml_string(xml)
        self._data = mujoco.MjData(self._model)
        self._bodies = bodies
        self._gripper = self._model.body("gripper").id
        self._cameras = dict(cameras)
        self._appearance = Appearance()
        self._own = self._model.geom_rgba.copy(), self._model.flex_rgba.copy()
        self._state = np.empty(mujoco.mj_stateSize(self._model, STATE))
        self._renderers: dict[str, mujoco_renderer.Renderer] = {}
        self.timestep = float(self._model.opt.timestep)
        self.held = -1

    def points(self) -> Array:
        """Return the keypoints (P, 3): here the grips."""
        return self.grips()

    def grips(self) -> Array:
        """Return the centres of the bodies, (G, 3)."""
        grips: Array = self._data.xipos[self._bodies.start : self._bodies.stop].copy()
        return grips

    def grasp(self, grip: int) -> None:
        """Move the gripper to the centre of a body and pin them together."""
        body = self._bodies[grip]
        self._data.mocap_pos[0] = self._data.xipos[body]
        self._model.eq_obj2id[0] = body
        self._data.eq_active[0] = 1
        self.held = grip

    def release(self) -> None:
        """Remove the pin."""
        self._data.eq_active[0] = 0
        self.held = -1

    def place_gripper(self, position: Array) -> None:
        """Put the empty gripper at `position` (3,)."""
        self._data.mocap_pos[0] = position
        self._pose()

    def follow(self, path: Array) -> None:
        """Move the gripper along a path (S, 3), one point per timestep."""
        for point in path:
            self._data.mocap_pos[0] = point
            mujoco.mj_step(self._model, self._data)

    def wait(self, steps: int) -> None:
        """Step the physics."""
        mujoco.mj_step(self._model, self._data, steps)

    def rest(self) -> None:
        """Stop all motion, so that the next state depends on the points alone."""
        self._data.qvel[:] = 0
        self._data.qacc_warmstart[:] = 0
        self._pose()

    def check(self) -> None:
        """Raise UnstablePhysics if MuJoCo warned or the state is not finite."""
        data = self._data
        diverged = any(data.warning[w].number for w in _DIVERGED)
        if diverged or not np.isfinite(data.qpos).all():
            raise UnstablePhysics(
                f"{self._name}: the simulation diverged; reset and drop the episode"
            )

    def gripper(self) -> Array:
        """Return the position (3,) of the gripper."""
        position: Array = self._data.mocap_pos[0].copy()
        return position

    def image(self, camera: str = "top", kind: Kind = "rgb") -> Array:
        """Return a camera's image; see `Engine.image`."""
        if camera not in self._renderers:
            mujoco_renderer.self_test()
            self._renderers[camera] = mujoco_renderer.Renderer(self._model, self._cameras[camera])
            self._illuminate(self._renderers[camera])
        renderer = self._renderers[camera]
        if kind == "depth":
            return renderer.depth(self._data)
        if kind == "segmentation":
            return self._labels(renderer.segmentation(self._data))
        return renderer.image(self._data)

    def place_camera(self, camera: Camera) -> None:
        """Move the camera of this name to its new pose; its images keep their size."""
        self._cameras[camera.name] = camera
        if camera.name in self._renderers:
            self._renderers[camera.name].camera = camera

    def set_appearance(self, appearance: Appearance) -> None:
        """Set the appearance of the scene; a pattern needs a scene that is `patterned`."""
        model, (geoms, flexes) = self._model, self._own
        bodies = model.geom_bodyid
        model.geom_rgba[:], model.flex_rgba[:] = geoms, flexes
        if appearance.object is not None:
            model.geom_rgba[(bodies > 0) & (bodies != self._gripper), :3] = appearance.object
            model.flex_rgba[:, :3] = appearance.object
        if appearance.table is not None:
            model.geom_rgba[model.geom("table").id, :3] = appearance.table
        if model.ntex:
            texels = np.repeat(255 * appearance.tile()[..., None] + 0.5, 3, axis=2)
            model.tex_data[:] = texels.astype(np.uint8).ravel()
        self._appearance = appearance
        for renderer in self._renderers.values():
            self._illuminate(renderer)
            if model.ntex:
                renderer.upload(0)

    def snapshot(self) -> Array:
        """Return the simulator's state and the held grip as a vector."""
        mujoco.mj_getState(self._model, self._data, self._state, STATE)
        return np.append(self._state, self.held)

    def restore(self, state: Array) -> None:
        """Restore a `snapshot`."""
        check(f"{self._name}.restore", state, "n", n=len(self._state) + 1)
        self.held = int(state[-1])
        mujoco.mj_setState(self._model, self._data, state[:-1], STATE)
        if self.held >= 0:
            self._model.eq_obj2id[0] = self._bodies[self.held]
        for warning in self._data.warning:
            warning.number = 0
        self._pose()

    def close(self) -> None:
        """Free the renderers."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers = {}

    def _illuminate(self, renderer: mujoco_renderer.Renderer) -> None:
        renderer.brightness = self._appearance.brightness
        renderer.toward_light = self._appearance.toward_light()

    def _labels(self, seen: Array) -> Array:
        """Return (h, w) uint8: 0 the table, 1 the object, 2 the gripper."""
        kind, number = seen[..., 0], seen[..., 1]
        body = np.where(kind == mujoco.mjtObj.mjOBJ_GEOM.value, self._model.geom_bodyid[number], 0)
        label = np.where(body == self._gripper, 2, body > 0)
        return np.where(kind == mujoco.mjtObj.mjOBJ_FLEX.value, 1, label).astype(np.uint8)

    def _clear(self) -> None:
        """Reset the simulator and release the gripper."""
        mujoco.mj_resetData(self._model, self._data)
        self.held = -1

    def _pose(self) -> None:
        """Compute all positions from the joints."""
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_comPos(self._model, self._data)


def scene(
    name: str,
    *,
    body: str,
    option: str,
    flag: str = "",
    tail: str,
    friction: float | None = None,
    patterned: bool = False,
) -> str:
    """Return an MJCF of a green table with `body` on it.

    `option` and `flag` are attributes of MuJoCo's elements of these names, `tail` follows the
    worldbody. `friction` is the table's (Coulomb), unless the object has its own. If `patterned`,
    the table has a texture that can be changed.
    """
    table = f' condim="3" friction="{friction}"' if friction is not None else ""
    if patterned:
        table += ' material="table"'
        tail += f"""<asset>
        <texture name="table" type="2d" builtin="flat" rgb1="1 1 1" width="{TILE}" height="{TILE}"/>
        <material name="table" texture="table" texrepeat="{TILES} {TILES}"/>
      </asset>"""
    return f"""<mujoco model="{name}">
      <option {option}>
        <flag autoreset="disable" {flag}/>
      </option>
      <visual>
        <quality shadowsize="0" offsamples="0" numslices="8" numstacks="4" numquads="2"/>
        <global offwidth="512" offheight="512"/>
        <headlight ambient=".4 .4 .4" diffuse=".6 .6 .6" specular="0 0 0"/>
      </visual>
      <worldbody>
        <geom name="table" type="plane" size="2 2 .1" rgba=".18 .45 .34 1" contype="1"
         conaffinity="0"{table}/>
        {body}
        <body name="gripper" mocap="true"/>
      </worldbody>
      {tail}</mujoco>"""


def walls(edge: float, *, friction: float = 0.1) -> str:
    """Return four invisible upright planes at +-edge metres, which keep the object in view."""
    return "".join(
        f'<geom type="plane" pos="{-edge * x} {-edge * y} 0" zaxis="{x} {y} 0" size="1 1 .1"'
        f' contype="1" conaffinity="0" friction="{friction}" rgba="0 0 0 0"/>'
        for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1))
    )
