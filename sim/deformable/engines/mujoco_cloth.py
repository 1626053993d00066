"""A cloth in MuJoCo: a grid of point masses connected by threads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from latentplan.errors import UnstablePhysics
from latentplan.sim.deformable.engines.mujoco import MujocoEngine, scene
from latentplan.sim.rendering import cameras
from latentplan.sim.rendering.mujoco_renderer import mujoco
from latentplan.types import Array

if TYPE_CHECKING:
    from latentplan.sim.deformable.cloth import Cloth

STILL = 0.05  # m/s, root mean square of the points' speeds at rest; enough to rise by 0.1 mm
CHUNK = 4  # timesteps between two checks for rest
SLACK = 1.03  # length of a stretched thread along the grid, over its length at rest
TORN = 2.0  # ratio of a thread's length to its limit, above which the simulation has failed
DIAGONAL_SLACK = 1.1  # the same for a diagonal thread: cloth shears more easily than it stretches


class MujocoCloth(MujocoEngine):
    """A cloth with the grid's points (rows * columns, 3) as keypoints and grips, row by row.

    Threads (tendons with a limit and no stiffness) connect neighbours: they bend and shorten but do
    not lengthen, and need no computation while slack. A ball at each point collides with the table,
    with Coulomb friction, and with the other balls, without friction, so that layers slide. (With
    friction of 0.3 between layers the cloth diverged; the solver would need more iterations.) Joint
    limits keep the cloth in the image. The flex is only visual. Timesteps are 12.5 ms. MuJoCo's own
    `flexcomp` is not used: a step with rigid edges took twice as long, and elastic edges were
    rubbery and stable up to 5 ms only.
    """

    def __init__(self, config: Cloth.Config) -> None:
        """Build the model; rendering is checked when the first image is taken."""
        count = config.rows * config.columns
        super().__init__(
            _xml(config), name="cloth", bodies=range(1, count + 1), cameras=cameras.of(config)
        )
        self._rest_steps = config.rest_steps
        self._model.eq_data[0, :6] = 0  # the pin is at the point
        self._origin = self._model.body_pos[1 : count + 1].copy()

    def lay(self, pose: Array) -> None:
        """Lay the points (P, 3) down and wait until they rest."""
        self._clear()
        self._data.qpos[:] = (pose - self._origin).ravel()
        self.wait(self._rest_steps)
        self.check()
        self.rest()

    def wait(self, steps: int) -> None:
        """Step the physics until the cloth rests, or for `steps` timesteps."""
        for done in range(0, steps, CHUNK):
            mujoco.mj_step(self._model, self._data, min(CHUNK, steps - done))
            speeds = self._data.qvel
            if 3 * speeds @ speeds < len(speeds) * STILL**2:
                return

    def check(self) -> None:
        """Raise UnstablePhysics if MuJoCo warned or if the cloth is torn apart."""
        super().check()
        if (self._data.ten_length > TORN * self._model.tendon_range[:, 1]).any():
            raise UnstablePhysics("cloth: it was torn apart; reset and drop the episode")

    def _pose(self) -> None:
        super()._pose()
        mujoco.mj_flex(self._model, self._data)  # the points of the visual flex


def _xml(c: Cloth.Config) -> str:
    """Return the MJCF; no `flexcomp` and no `composite`, so that it loads in MuJoCo 3 and 4."""
    count = c.rows * c.columns
    grid = np.arange(count).reshape(c.rows, c.columns)
    mass = c.mass / count
    edge = c.view - c.radius
    within = f'limited="true" range="{-edge} {edge}"'
    slide = "".join(
        f'<joint type="slide" axis="{axis}" damping="{mass * c.damping}" {limit}/>'
        for axis, limit in (("1 0 0", within), ("0 1 0", within), ("0 0 1", ""))
    )
    points = "".join(
        f'<body name="point{i}" pos="0 0 {c.radius}">{slide}'
        # MuJoCo takes the larger of two frictions, so a ball has none and the table's applies.
        f'<geom size="{c.radius}" mass="{mass}" condim="1" friction="0 0 0" contype="2"'
        f' conaffinity="3" group="3"/>'
        f'<site name="point{i}" group="3"/></body>'
        for i in range(count)
    )
    along = np.concatenate(
        [_pairs(grid[:-1], grid[1:]), _pairs(grid[:, :-1], grid[:, 1:])],
    )
    across = np.concatenate(
        [_pairs(grid[:-1, :-1], grid[1:, 1:]), _pairs(grid[:-1, 1:], grid[1:, :-1])]
    )
    threads = "".join(
        f'<spatial range="0 {length}" limited="true" group="3">'
        f'<site site="point{a}"/><site site="point{b}"/></spatial>'
        for pairs, length in (
            (along, c.spacing * SLACK),
            (across, c.spacing * np.sqrt(2) * DIAGONAL_SLACK),
        )
        for a, b in pairs
    )
    a, b, d, e = grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]
    triangles = np.concatenate([_pairs(a, b, d), _pairs(a, d, e)]).ravel()
    return scene(
        "cloth",
        patterned=bool(c.randomise.texture),
        option=f'timestep="{c.timestep}" integrator="implicitfast" solver="CG" cone="elliptic"'
        f' iterations="{c.iterations}" tolerance="1e-6"',
        flag='island="disable"',  # a cloth is one island, and the search for others costs 5 %
        body=points,
        friction=c.friction,
        tail=f"""<tendon>{threads}</tendon>
      <deformable>
        <flex name="cloth" dim="2" radius="{c.radius / 3}" rgba="1 .8 .35 1"
         body="{" ".join(f"point{i}" for i in range(count))}"
         vertex="{" ".join(["0 0 0"] * count)}" element="{" ".join(map(str, triangles))}">
          <contact contype="0" conaffinity="0" selfcollide="none"/>
        </flex>
      </deformable>
      <equality>
        <connect body1="gripper" body2="point0" anchor="0 0 0" active="false" solref="0.03 1"/>
      </equality>""",
    )


def _pairs(*corners: Array) -> Array:
    return np.stack([c.ravel() for c in corners], 1)
