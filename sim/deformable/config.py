"""The settings that rope and cloth share."""

from __future__ import annotations

from dataclasses import dataclass

from latentplan.errors import ConfigError, check_range, unknown
from latentplan.sim import randomisation
from latentplan.sim.randomisation import Randomisation
from latentplan.sim.rendering import sensors
from latentplan.sim.rendering.cameras import Pose
from latentplan.sim.rendering.clouds import Cloud


def check_choice(where: str, value: str, known: tuple[str, ...]) -> None:
    """Raise ConfigError unless `value` is in `known`."""
    if value not in known:
        raise ConfigError(str(unknown(where, value, known)))


@dataclass(frozen=True)
class DeformableConfig:
    """The settings of every task; lengths in metres, masses in kilograms."""

    engine: str = "mujoco"  # physics engine: mujoco or pybullet
    control: str = "pick"  # meaning of an action: a whole pick-and-drag, or a gripper's `velocity`
    actuator: str = "gripper"  # a gripper alone, or one on a simulated `arm`
    arm: str = "panda"  # name or YAML file of the arm; actuator=arm
    image: int = 64  # side of every image, pixels
    cameras: tuple[str, ...] = ("top",)  # any of top, front, side, angled, custom
    observe: tuple[str, ...] = ("rgb",)  # images of each: rgb, depth, segmentation; and cloud
    custom: Pose = Pose()  # pose of the camera `custom`
    cloud: Cloud = Cloud()  # processing of the cameras' points; observe=[cloud]
    randomise: Randomisation = Randomisation()  # changes between episodes or steps
    rectify: bool = False  # map `rgb` to the view of the unmoved camera, by the true pose
    view: float = 0.3  # half the side of the table in the image
    workspace: float = 0.25  # largest |x| and |y| of the gripper
    drag: float = 0.1  # length of a drag of 1 along one axis
    pick_radius: float = 0.03  # a pick farther from the object grasps nothing
    speed: float = 0.3  # m/s, of a velocity of 1 along one axis; control=velocity
    rate: float = 12.5  # actions per second; control=velocity
    timestep: float = 0.008  # s
    move_steps: int = 40  # physics steps of a drag
    rest_steps: int = 16  # most physics steps after a release

    def __post_init__(self) -> None:
        """Raise ConfigError if a field is out of its range."""
        where = type(self).__qualname__.removesuffix(".Config")
        check_choice(f"{where}.control", self.control, ("pick", "velocity"))
        check_choice(f"{where}.actuator", self.actuator, ("gripper", "arm"))
        if self.actuator == "arm" and self.control != "pick":
            raise ConfigError(f"{where}.actuator: arm needs control=pick, found {self.control!r}")
        for name in ("view", "workspace", "drag", "pick_radius", "speed"):
            check_range(f"{where}.{name}", getattr(self, name), 1e-4, 10)
        check_range(f"{where}.image", self.image, 16, 512)
        check_range(f"{where}.workspace", self.workspace, 0, self.view)
        check_range(f"{where}.timestep", self.timestep, 1e-4, 0.02)
        check_range(f"{where}.rate", self.rate, 1, 1 / self.timestep)
        check_range(f"{where}.move_steps", self.move_steps, 1, 10_000)
        check_range(f"{where}.rest_steps", self.rest_steps, 0, 10_000)
        sensors.check(where, self)
        randomisation.check(where, self)
