"""Pictures of a MuJoCo model that somebody else made, by the cameras that it comes with.

Drawn by `sim.render` in the process's one GL context; robosuite's own renderer, whose context goes
with each hard reset and takes the next one's textures along, is never made.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from latentplan.sim import render
from latentplan.sim.cameras import Camera
from latentplan.types import Array

COLLISION = 0  # robosuite's group of geoms that are not to be seen
HIDDEN = 5  # a group that is never drawn


class Pictures:
    """Pictures (h, w) by the model's cameras, without shadows and reflections.

    What lies outside a camera's field of view is not sent to OpenGL: on a software GL the 170,000
    triangles of an arm are nearly the whole cost.
    """

    def __init__(self, model: Any, *, cameras: dict[str, str], size: int) -> None:
        """Take cameras by name, each with the model's name for it; pictures are `size` a side."""
        render.self_test()
        mujoco = render.mujoco
        model.vis.quality.shadowsize = 0
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        self._model, self._size = model, size
        kind = mujoco.mjtObj.mjOBJ_CAMERA
        self._ids = {k: mujoco.mj_name2id(model, kind, name) for k, name in cameras.items()}
        first = Camera("none yet", (0.0, 0.0, 0.0), (1.0, 0.0, 0.0), width=size, height=size)
        self._renderer = _Visual(model, first)
        self._groups = model.geom_group.copy()

    def camera(self, data: Any, name: str) -> Camera:
        """Return a camera where it is now."""
        number = self._ids[name]
        position, axes = data.cam_xpos[number], data.cam_xmat[number].reshape(3, 3)
        return Camera(
            name,
            tuple(position.tolist()),
            target=tuple((position - axes[:, 2]).tolist()),
            up=tuple(axes[:, 1].tolist()),
            fovy=float(self._model.cam_fovy[number]),
            width=self._size,
            height=self._size,
        )

    def picture(self, data: Any, name: str) -> Array:
        """Return what a camera sees, (h, w, 3) uint8."""
        with self._aimed(data, name):
            return self._renderer.picture(data)

    def depth(self, data: Any, name: str) -> Array:
        """Return (h, w) float32: metres from a camera, along its axis."""
        with self._aimed(data, name):
            return self._renderer.depth(data)

    def close(self) -> None:
        """Free the model's textures."""
        self._renderer.close()

    def _aimed(self, data: Any, name: str) -> _Culled:
        camera = self._renderer.camera = self.camera(data, name)
        return _Culled(self._model, self._groups, outside(camera, data.geom_xpos, self._model))


class _Visual(render.Renderer):
    """A renderer that shows what is meant to be seen, and not what collides."""

    def __init__(self, model: Any, camera: Camera) -> None:
        super().__init__(model, camera)
        self._options.geomgroup[[COLLISION, HIDDEN]] = 0


class _Culled:
    """While it is entered, some geoms are in a group that is not drawn."""

    def __init__(self, model: Any, groups: Array, hide: Array) -> None:
        self._model, self._groups, self._hide = model, groups, hide

    def __enter__(self) -> None:
        self._model.geom_group[self._hide] = HIDDEN

    def __exit__(self, *_: object) -> None:
        self._model.geom_group[:] = self._groups


def outside(camera: Camera, positions: Array, model: Any) -> Array:
    """Return (geoms,) bool: whether the sphere around a geom lies outside the field of view."""
    right, down, forward = ((positions - np.asarray(camera.position)) @ camera.axes().T).T
    radius = model.geom_rbound  # 0 for planes, which are everywhere
    angle = np.radians(camera.fovy) / 2  # pictures are square
    sideways = np.maximum(np.abs(right), np.abs(down)) * np.cos(angle) - forward * np.sin(angle)
    hidden: Array = (radius > 0) & ((sideways > radius) | (forward < -radius))
    return hidden
