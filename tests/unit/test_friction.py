"""Coulomb's law: what slides over the table comes to rest after v^2 / (2 friction g)."""

import numpy as np
import pytest

from latentplan.sim.deformable import folds
from latentplan.sim.deformable.cloth import Cloth
from latentplan.sim.deformable.engines.engine import Curve
from latentplan.sim.deformable.rope import Rope
from latentplan.sim.rendering.mujoco_renderer import mujoco

SPEED = 0.6  # m/s


def push(env, pose):
    """Return how far an object slides that is laid down and pushed along x, in metres."""
    engine = env._engine
    engine.lay(pose)
    before = engine.points()
    if env.config.engine == "mujoco":
        # A rope's other joints turn its links; each joint of a cloth moves a point along one axis.
        engine._data.qvel[: 1 if env.name == "rope" else None : 3] = SPEED
        mujoco.mj_step(engine._model, engine._data, 80)
        engine._pose()
    else:
        velocities = np.zeros((len(engine._bodies), 6))
        velocities[:, 0] = SPEED
        engine._put(engine._poses(), velocities)
        engine.wait(80)
    return (engine.points() - before)[:, 0].mean()


def reach(friction):
    return SPEED**2 / (2 * friction * 9.81)


@pytest.fixture(params=["mujoco", "pybullet"])
def engine(request):
    if request.param == "pybullet":
        pytest.importorskip("pybullet")
    return request.param


@pytest.mark.parametrize("friction", [0.3, 0.6, 1.5])
def test_a_cloth_slides_as_far_as_its_friction_lets_it(engine, friction):
    env = Cloth(Cloth.Config(engine=engine, friction=friction, damping=0.0))
    c = env.config
    flat = folds.flat(c.rows, c.columns, spacing=c.spacing) + [-0.05, 0, c.radius]
    assert push(env, flat) == pytest.approx(reach(friction), abs=SPEED * c.timestep)
    env.close()


@pytest.mark.parametrize("friction", [0.3, 0.6, 1.5])
def test_a_rope_slides_as_far_as_its_friction_lets_it(engine, friction):
    env = Rope(Rope.Config(engine=engine, friction=friction))
    c = env.config
    line = Curve(np.array([-0.22, 0.0]), 0.0, bends=np.zeros(c.links - 1), step=c.length / c.links)
    assert push(env, line) == pytest.approx(reach(friction), abs=SPEED * c.timestep)
    env.close()
