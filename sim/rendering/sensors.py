"""The camera observations of an env: images, depth, segmentation, a point cloud."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from latentplan.errors import ConfigError, unknown
from latentplan.sim.randomisation import Conditions
from latentplan.sim.rendering import cameras, clouds
from latentplan.sim.rendering.cameras import Camera
from latentplan.sim.rendering.rectification import rectify
from latentplan.types import Array, ArraySpec

KINDS = ("rgb", "depth", "segmentation", "cloud")


def check(where: str, config: Any) -> None:
    """Raise ConfigError unless `config.cameras` and `config.observe` hold known names."""
    cameras.check_names(f"{where}.cameras", config.cameras)
    for kind in config.observe:
        if kind not in KINDS:
            raise ConfigError(f"{where}.observe: {unknown('kind', kind, KINDS)}")
    cameras.of(config)  # raises for an invalid custom one
    if config.rectify and "top" in config.cameras and set(config.observe) != {"rgb"}:
        raise ConfigError(
            f"{where}.rectify: found true and observe={list(config.observe)} of the camera top, of "
            "which it maps the colour image alone; set observe=[rgb], or other cameras"
        )


class Renderer(Protocol):
    """A simulator that renders named cameras."""

    def image(self, camera: str, kind: Any) -> Array:
        """Return the image of a camera: `rgb`, `depth` or `segmentation`."""


class Sensors:
    """The camera observations of a config, by key.

    `rgb` is the camera `top`, always present because picks refer to it. Others are named
    `<kind>_<camera>`, for `cameras` and `observe` of the config; `cloud` fuses all of them.
    """

    def __init__(self, config: Any) -> None:
        """Take the cameras of an env's config; MissingDependency if clouds need open3d."""
        self._images = {"rgb": ("top", "rgb")}  # by key: camera and kind
        for camera in config.cameras:
            for kind in ("rgb", "depth", "segmentation"):
                if kind in config.observe and (camera, kind) != ("top", "rgb"):
                    self._images[f"{kind}_{camera}"] = (camera, kind)
        self._numbers = {camera: number for number, camera in enumerate(cameras.NAMES)}
        self._size = config.image
        self._nominal = cameras.of(config)["top"] if config.rectify else None
        self._height = config.radius
        self._from: tuple[str, ...] = config.cameras if "cloud" in config.observe else ()
        self._cloud = config.cloud
        used = {camera for camera, _ in self._images.values()} | set(self._from)
        self.cameras = [name for name in cameras.NAMES if name in used]
        if self._from:
            clouds.library()

    def specs(self) -> dict[str, ArraySpec]:
        """Return the spec of each observation."""
        side = (self._size, self._size)
        specs = {}
        for key, (camera, kind) in self._images.items():
            specs[key] = {
                "rgb": ArraySpec((*side, 3), "uint8", f"camera {camera}"),
                "depth": ArraySpec(side, "float32", f"camera {camera}, m along its axis"),
                "segmentation": ArraySpec(
                    side, "uint8", f"camera {camera}: 0 table, 1 object, 2 gripper"
                ),
            }[kind]
        specs["rgb"] = ArraySpec((*side, 3), "uint8", "camera above the table")
        if self._from:
            specs["cloud"] = self._cloud.spec()
        return specs

    def views(self) -> dict[str, str]:
        """Return the camera of each colour image, by key."""
        return {key: camera for key, (camera, kind) in self._images.items() if kind == "rgb"}

    def read(
        self, renderer: Renderer, placed: Mapping[str, Camera], conditions: Conditions | None
    ) -> dict[str, Array]:
        """Return the observations of cameras at the poses of `placed`."""
        seen = {}
        for key, (camera, kind) in self._images.items():
            seen[key] = self._take(renderer, camera, kind, conditions)
        if self._nominal is not None:
            seen["rgb"] = rectify(seen["rgb"], placed["top"], self._nominal, height=self._height)
        if self._from:
            depths = [
                seen[f"depth_{camera}"]
                if f"depth_{camera}" in seen
                else self._take(renderer, camera, "depth", conditions)
                for camera in self._from
            ]
            seen["cloud"] = clouds.fuse(
                depths, [placed[camera] for camera in self._from], self._cloud
            )
        return seen

    def _take(
        self, renderer: Renderer, camera: str, kind: Any, conditions: Conditions | None
    ) -> Array:
        image = renderer.image(camera, kind)
        if conditions is None or kind == "segmentation":
            return image
        number = 2 * self._numbers[camera] + (kind == "depth")
        return conditions.noisy(kind, image, number=number)
