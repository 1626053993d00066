"""Images of another package's MuJoCo model, by the cameras of the model.

`sim.rendering` renders them in the process's one GL context. robosuite's own renderer is never
created, because its context ends with each hard reset and takes the next one's textures along.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from latentplan.sim.rendering import mujoco_renderer
from latentplan.sim.rendering.cameras import Camera
from latentplan.types import Array

COLLISION = 0  # robosuite's group of collision geoms, which are invisible
HIDDEN = 5  # a group that is never rendered
SMOOTH = 4  # samples a pixel of an image, as in robosuite


class ImageRenderer:
    """A renderer of images (h, w) by the model's cameras, without shadows and reflections.

    Geoms outside a camera's field of view are not sent to OpenGL: on a software GL the 170,000
    triangles of an arm are nearly the whole cost.
    """

    def __init__(self, model: Any, *, cameras: dict[str, str], size: int) -> None:
        """Take cameras by name, each with the model's name for it; images have the side `size`."""
        mujoco_renderer.self_test()
        mujoco = mujoco_renderer.mujoco
        model.vis.quality.shadowsize = 0
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        self._model, self._size = model, size
        kind = mujoco.mjtObj.mjOBJ_CAMERA
        self._ids = {k: mujoco.mj_name2id(model, kind, name) for k, name in cameras.items()}
        self._groups = model.geom_group.copy()
        self._renderers: dict[int, _Visual] = {}  # by samples a pixel

    def camera(self, data: Any, name: str) -> Camera:
        """Return a camera at its present pose."""
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

    def image(self, data: Any, name: str) -> Array:
        """Return a camera's image (h, w, 3) uint8."""
        renderer = self._renderer(name, data, samples=SMOOTH)
        with self._culled(renderer.camera, data):
            return renderer.image(data)

    def depth(self, data: Any, name: str) -> Array:
        """Return (h, w) float32: metres from a camera, along its axis, in the pixels' middles."""
        renderer = self._renderer(name, data, samples=0)  # several samples lie off the middle
        with self._culled(renderer.camera, data):
            return renderer.depth(data)

    def close(self) -> None:
        """Free the model's textures."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers = {}

    def _renderer(self, name: str, data: Any, *, samples: int) -> _Visual:
        """Return the renderer with `samples` a pixel, at the camera's present pose."""
        camera = self.camera(data, name)
        if samples not in self._renderers:
            self._model.vis.quality.offsamples = samples
            self._renderers[samples] = _Visual(self._model, camera)
        renderer = self._renderers[samples]
        renderer.camera = camera
        return renderer

    @contextmanager
    def _culled(self, camera: Camera, data: Any) -> Iterator[None]:
        """Move geoms outside the camera's view into a group that is not rendered."""
        self._model.geom_group[outside(camera, data.geom_xpos, self._model)] = HIDDEN
        try:
            yield
        finally:
            self._model.geom_group[:] = self._groups


class _Visual(mujoco_renderer.Renderer):
    """A renderer of visual geoms, without collision geoms."""

    def __init__(self, model: Any, camera: Camera) -> None:
        super().__init__(model, camera)
        self._options.geomgroup[[COLLISION, HIDDEN]] = 0


def outside(camera: Camera, positions: Array, model: Any) -> Array:
    """Return which geoms (geoms,) bool have their bounding sphere outside the field of view."""
    right, down, forward = ((positions - np.asarray(camera.position)) @ camera.axes().T).T
    radius = model.geom_rbound  # 0 for planes, which are infinite
    angle = np.radians(camera.fovy) / 2  # images are square
    sideways = np.maximum(np.abs(right), np.abs(down)) * np.cos(angle) - forward * np.sin(angle)
    hidden: Array = (radius > 0) & ((sideways > radius) | (forward < -radius))
    return hidden
