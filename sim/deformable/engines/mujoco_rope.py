"""A rope in MuJoCo: a chain of rigid links with two hinges each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from latentplan.sim.deformable.engines.engine import Curve
from latentplan.sim.deformable.engines.mujoco import MujocoEngine, scene, walls
from latentplan.sim.rendering import cameras
from latentplan.types import Array

if TYPE_CHECKING:
    from latentplan.sim.deformable.rope import Rope


class MujocoRope(MujocoEngine):
    """A rope with the links' ends (links + 1, 3) as keypoints, and their centres as grips."""

    def __init__(self, config: Rope.Config) -> None:
        """Build the model; rendering is checked when the first image is taken."""
        super().__init__(
            _xml(config), name="rope", bodies=range(1, config.links + 1), cameras=cameras.of(config)
        )
        self._rest_steps = config.rest_steps
        self._model.eq_data[0, 3:6] = config.length / config.links / 2, 0, 0  # a link's centre

    def lay(self, pose: Curve) -> None:
        """Lay the rope down along a curve and wait until it rests."""
        self._clear()
        heading = pose.heading
        self._data.qpos[:2] = pose.start
        self._data.qpos[3:7] = np.cos(heading / 2), 0, 0, np.sin(heading / 2)
        self._data.qpos[7::2] = pose.bends  # the joints that turn about the vertical
        self.wait(self._rest_steps)
        self.check()
        self.rest()

    def points(self) -> Array:
        """Return the links' ends (links + 1, 3)."""
        starts = self._data.xpos[self._bodies.start : self._bodies.stop]
        return np.concatenate([starts, self._data.site_xpos[:1]])


def _xml(c: Rope.Config) -> str:
    """Return the MJCF.

    Only spheres at the links' centres touch the table, one contact a link; the capsules are only
    visual. This is twice as fast as capsules that collide. The spheres' friction has priority,
    because MuJoCo takes the larger of two. The armature keeps light links stable at a large
    timestep. Without `composite` the model loads in MuJoCo 3 and 4.
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
            f' contype="0" conaffinity="1" friction="{c.friction} 0.005 1e-4" priority="1"'
            f' group="3"/>'
            f'<geom type="capsule" fromto="0 0 0 {step} 0 0" size="{c.radius}" mass="0"'
            f' contype="0" conaffinity="0" rgba="1 .92 .84 1"/>{end}{chain}</body>'
        )
    return scene(
        "rope",
        patterned=bool(c.randomise.texture),
        option=f'timestep="{c.timestep}" integrator="implicitfast" cone="pyramidal" iterations="8"',
        # The walls keep a swinging tail in the image.
        body=walls(c.view - c.radius / 2) + chain,
        tail="""<equality>
        <connect body1="gripper" body2="link0" anchor="0 0 0" active="false" solref="0.03 1"/>
      </equality>""",
    )
