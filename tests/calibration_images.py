"""Images of a printed board as a camera with a lens sees it, for tests of calibration."""

from __future__ import annotations

import numpy as np

from latentplan.real_robot.perception.calibration_target import CalibrationTarget
from latentplan.robots.camera import CalibratedCamera
from latentplan.robots.chain import flange
from latentplan.robots.description import Arm
from latentplan.types import Array

SAMPLES = 2  # rays a pixel, along each side: a sensor's pixel sees an area


class Studio:
    """An arm, a camera and a board whose poses are known."""

    def __init__(
        self,
        arm: Arm,
        camera: CalibratedCamera,
        mount: str,
        *,
        board: CalibrationTarget | None = None,
    ) -> None:
        """Put the camera somewhere plausible, and the board in front of it when the arm is home."""
        self.arm, self.board = arm, board or CalibrationTarget()
        self._paper, self._scale = self.board.image(dpi=100)
        home = flange(arm, arm.column("home")[None])[0]
        if mount == "table":
            position = home[:3, 3] + (0.75, 0.35, 0.3)
            camera = looking(camera, position, home[:3, 3])
        else:
            camera = camera.mounted("flange", _pose((0.1, -0.05, 0.3), (0.06, -0.02, 0.04)))
        self.camera = camera
        width, height = self.board.size
        # Half a metre off, tilted, its middle near that of the image.
        front = _pose((0.3, -0.25, 0.1), (0.02, 0.01, 0.5))
        front = front @ _pose((0, 0, 0), (-width / 2, -height / 2, 0))
        carrier = home if mount == "table" else np.eye(4)
        self.carried = np.linalg.inv(carrier) @ camera.at(home).pose() @ front
        step = (np.arange(SAMPLES) + 0.5) / SAMPLES - 0.5
        v = (np.arange(camera.height)[:, None] + step).ravel()
        u = (np.arange(camera.width)[:, None] + step).ravel()
        self._rays = camera.rays(np.stack(np.meshgrid(u, v), -1))

    def board_pose(self, q: Array) -> Array:
        """Return (4, 4) board -> camera with the joints at q (J,)."""
        here = flange(self.arm, q[None])[0]
        world = here @ self.carried if self.camera.mount == "table" else self.carried
        pose: Array = np.linalg.inv(self.camera.at(here).pose()) @ world
        return pose

    def image(self, q: Array, rng: np.random.Generator, *, noise: float = 0.0) -> Array:
        """Return (h, w, 3) uint8 with the joints at q (J,), with noise of a std in levels."""
        import cv2

        # A ray r meets the board where board -> camera turns (x, y, 1) into a multiple of r.
        flat = np.linalg.inv(self.board_pose(q)[:, [0, 1, 3]][:3])
        x, y, w = np.moveaxis(self._rays @ flat.T, -1, 0)
        margin = round(self.board.square * self._scale) // 2
        place = [(each / w * self._scale + margin - 0.5).astype(np.float32) for each in (x, y)]
        seen = cv2.remap(self._paper, *place, cv2.INTER_LINEAR, borderValue=90).astype(float)
        high, wide = self.camera.height, self.camera.width
        seen = seen.reshape(high, SAMPLES, wide, SAMPLES).mean((1, 3))
        grey = 20 + 0.8 * seen + rng.normal(0, noise, seen.shape)
        return np.repeat(np.clip(np.round(grey), 0, 255).astype(np.uint8)[..., None], 3, -1)

    def positions(self, count: int, rng: np.random.Generator, *, reach: float = 0.4) -> Array:
        """Return joint positions (count, J) near home in which the camera sees the whole board."""
        width, height = self.board.size
        outline = np.array([(x, y, 0, 1) for x in (0, width) for y in (0, height)])
        low, high = self.arm.column("low"), self.arm.column("high")
        size = np.array([self.camera.width, self.camera.height])
        found: list[Array] = []
        while len(found) < count:
            q = self.arm.column("home") + rng.uniform(-reach, reach, len(low))
            pose = self.board_pose(q)
            here = (outline @ pose.T)[:, :3]
            pixels = here[:, :2] / here[:, 2:] * self.camera.fx + (self.camera.cx, self.camera.cy)
            seen = ((pixels > 8) & (pixels < size - 8)).all() and (here[:, 2] > 0.2).all()
            if seen and pose[2, 2] > 0.5 and ((low < q) & (q < high)).all():
                found.append(q)
        return np.stack(found)


def looking(camera: CalibratedCamera, position: Array, target: Array) -> CalibratedCamera:
    """Return the camera at the table, at `position` (3,), looking at `target` (3,)."""
    forward = (target - position) / np.linalg.norm(target - position)
    right = np.cross(forward, (0, 0, 1.0))
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(forward, right), forward, position], 1)
    return camera.mounted("table", pose)


def _pose(turn: tuple[float, ...], shift: tuple[float, ...]) -> Array:
    from scipy.spatial.transform import Rotation

    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = Rotation.from_rotvec(turn).as_matrix(), shift
    return pose
