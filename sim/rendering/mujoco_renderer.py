"""Images from MuJoCo, with one OpenGL context for the life of the process.

MuJoCo's own `Renderer` creates a GL context of its own. If two of them live in one process and
the first is freed, it deletes GL objects in the current context, so that the second returns
garbage images and no error. Here every `Renderer` shares one context that is created once and
never freed, so a Renderer frees its own objects only. Use it from one thread only.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from threading import get_ident
from typing import Any

import numpy as np

from latentplan.errors import MissingDependency
from latentplan.sim.rendering import gl
from latentplan.sim.rendering.cameras import Camera
from latentplan.types import Array

# In Mesa's software renderer, threads cost more than they save on small images, and workers are
# processes already.
os.environ.setdefault("LP_NUM_THREADS", "0")
os.environ["MUJOCO_GL"] = gl.choose()  # MuJoCo reads it while it is imported
import mujoco as mujoco  # noqa: E402  (envs import it from here, after the choice)

# Envs read the counters of `data.warning` and raise UnstablePhysics; without this MuJoCo would also
# write a MUJOCO_LOG.TXT into the user's folder.
mujoco.set_mju_user_warning(lambda message: None)

# Effects that are slow on a software GL and useless to a policy: the 4096^2 shadow map alone takes
# 20 to 50 ms an image.
OFF = (
    mujoco.mjtRndFlag.mjRND_SHADOW,
    mujoco.mjtRndFlag.mjRND_REFLECTION,
    mujoco.mjtRndFlag.mjRND_SKYBOX,
)
SEGMENT = (mujoco.mjtRndFlag.mjRND_SEGMENT, mujoco.mjtRndFlag.mjRND_IDCOLOR)
LARGEST = 512  # side of the offscreen buffer, pixels
_ANYWHERE = mujoco.MjvCamera()  # mjv_updateScene needs one; `_aim` sets the pose afterwards


@cache
def _context() -> tuple[Any, int]:
    """Return the process's only GL context and the thread that owns it."""
    # Not mujoco.GLContext, which the first import of MuJoCo may have chosen for a screen.
    platform = import_module(f"mujoco.{gl.choose()}")
    context = platform.GLContext(LARGEST, LARGEST)
    context.make_current()
    return context, get_ident()


class Renderer:
    """A renderer of images (h, w) of one model by one camera, top row first; both may change."""

    def __init__(self, model: Any, camera: Camera) -> None:
        """Upload the model's textures."""
        self._current()
        self.camera = camera
        self.brightness = 1.0  # factor on all light
        self.toward_light: Array | None = None  # (3,); None: the light is at the camera
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        self._options = mujoco.MjvOption()
        self._model = model
        self._rectangle = mujoco.MjrRect(0, 0, camera.width, camera.height)
        self._resources: Any = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._resources)
        self._pixels = np.empty((camera.height, camera.width, 3), np.uint8)

    def _current(self) -> None:
        context, thread = _context()
        if thread != get_ident():
            raise MissingDependency(
                "rendering: OpenGL belongs to the thread that made the first image; "
                "make and step envs in one thread, or in several processes"
            )
        context.make_current()

    def image(self, data: Any) -> Array:
        """Return the camera's image as a new (h, w, 3) uint8 array."""
        self._draw(data)
        mujoco.mjr_readPixels(self._pixels, None, self._rectangle, self._resources)
        image: Array = self._pixels[::-1].copy()  # OpenGL counts rows from the bottom
        return image

    def depth(self, data: Any) -> Array:
        """Return (h, w) float32: metres from the camera, along its axis."""
        self._draw(data)
        buffer = np.empty(self._pixels.shape[:2], np.float32)
        mujoco.mjr_readPixels(None, buffer, self._rectangle, self._resources)
        extent, planes = self._model.stat.extent, self._model.vis.map
        near, far = planes.znear * extent, planes.zfar * extent
        metres: Array = near / (1 - buffer[::-1] * (1 - near / far))
        return metres.astype(np.float32)

    def segmentation(self, data: Any) -> Array:
        """Return (h, w, 2) int32: MuJoCo's type (mjtObj) and number of each pixel's object.

        An object is a geom, a site or a flex; the background is (-1, -1).
        """
        self._draw(data, segment=True)
        mujoco.mjr_readPixels(self._pixels, None, self._rectangle, self._resources)
        code = self._pixels[::-1].astype(np.int32) @ (1, 256, 65536)
        seen = np.full((self._scene.ngeom + 1, 2), -1, np.int32)
        for geom in self._scene.geoms[: self._scene.ngeom]:
            if geom.segid >= 0:
                seen[geom.segid + 1] = geom.objtype, geom.objid
        found: Array = seen[code]
        return found

    def _draw(self, data: Any, *, segment: bool = False) -> None:
        self._current()
        mujoco.mjv_updateScene(
            self._model,
            data,
            self._options,
            None,
            _ANYWHERE,
            mujoco.mjtCatBit.mjCAT_ALL.value,
            self._scene,
        )
        self._aim()
        self._light()
        for flag in OFF:  # mjv_updateScene keeps them, a new scene does not
            self._scene.flags[flag] = 0
        for flag in SEGMENT:
            self._scene.flags[flag] = segment
        # Another camera's buffer may be bound.
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._resources)
        mujoco.mjr_render(self._rectangle, self._scene, self._resources)

    def _aim(self) -> None:
        """Set the pose of the scene's camera, as mjv_updateCamera does for one of the model."""
        camera, extent, planes = self.camera, self._model.stat.extent, self._model.vis.map
        _, down, forward = camera.axes()
        near = planes.znear * extent
        top = near * np.tan(np.radians(camera.fovy) / 2)
        for eye in self._scene.camera:  # MuJoCo renders the mean of two eyes
            eye.pos, eye.forward, eye.up = camera.position, forward, -down
            eye.orthographic = 0
            eye.frustum_near, eye.frustum_far = near, planes.zfar * extent
            eye.frustum_top, eye.frustum_bottom = top, -top
            eye.frustum_center = eye.frustum_width = 0  # the width follows from the image's

    def _light(self) -> None:
        lamp = self._scene.lights[0]  # the headlight, a scene's only light
        lamp.pos, lamp.dir = self.camera.position, self.camera.axes()[2]
        if self.brightness != 1:
            lamp.ambient, lamp.diffuse = (
                self.brightness * lamp.ambient,
                self.brightness * lamp.diffuse,
            )
        if self.toward_light is not None:
            lamp.headlight = 0
            lamp.type = mujoco.mjtLightType.mjLIGHT_DIRECTIONAL
            lamp.pos, lamp.dir = 2 * self.toward_light, -self.toward_light

    def upload(self, texture: int) -> None:
        """Send a changed texture of the model to OpenGL."""
        self._current()
        mujoco.mjr_uploadTexture(self._model, self._resources, texture)

    def close(self) -> None:
        """Free the model's textures; the shared GL context stays."""
        if self._resources is not None:
            self._current()
            self._resources.free()
            self._resources = None


_SCENE = """
<mujoco><visual><quality shadowsize="0" offsamples="0"/></visual><worldbody>
<light pos="0 0 1" dir="0 0 -1"/>
<geom type="plane" size="2 2 .1" rgba="0 .6 0 1"/>
<geom type="box" size=".2 .2 .1" pos=".2 .2 0" rgba="1 0 0 1"/>
</worldbody></mujoco>
"""


@cache
def self_test() -> str:
    """Render a known scene twice, compare, and return the name of the GL that works.

    Raises MissingDependency if the images differ or do not show the scene. Runs once a process
    (about 20 ms); every env calls it before its first image.
    """
    model = mujoco.MjModel.from_xml_string(_SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    top = Camera("top", (0.0, 0.0, 1.0), up=(0.0, 1.0, 0.0), fovy=60.0)
    images = []
    for _ in range(2):
        renderer = Renderer(model, top)
        images.append(renderer.image(data))
        renderer.close()
    box, table = images[0][20, 44].astype(int), images[0][50, 10].astype(int)
    name = os.environ["MUJOCO_GL"]
    if not (images[0] == images[1]).all() or box[0] < box[1] + 50 or table[1] < table[0] + 50:
        raise MissingDependency(
            f"OpenGL ({name}): the self-test drew a wrong image (box {box.tolist()}, table "
            f"{table.tolist()}); try the other of MUJOCO_GL=egl and MUJOCO_GL=osmesa"
        )
    return name
