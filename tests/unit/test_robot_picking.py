"""An arm behind the filter that picks and drags a rope, which follows its fingers tick by tick."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from latentplan.errors import ConfigError, ShapeError
from latentplan.real_robot.backends.sim import SimulatedDriver
from latentplan.real_robot.loop.local import LocalRobot
from latentplan.real_robot.loop.safety import SafetyFilter
from latentplan.real_robot.loop.supervisor import Supervisor
from latentplan.real_robot.motion.picking import Picking, on_table
from latentplan.real_robot.motion.tracking import Tracking
from latentplan.robots.description import load
from latentplan.sim.deformable.rope import Rope
from latentplan.sim.deformable.scene import Scene
from latentplan.sim.rendering.cameras import Camera

PANDA = load("panda")


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    scene = Scene(Rope(), seed=3)
    yield scene
    scene.close()


def robot(scene: Scene, **values: object) -> LocalRobot:
    driver = SimulatedDriver(PANDA, scene=scene)
    safety = SafetyFilter(PANDA, SafetyFilter.Config(**values))
    return LocalRobot(driver, Supervisor(safety, cameras=driver.cameras))


def test_the_expert_s_drags_bring_the_rope_to_its_goal_without_an_intervention(
    scene: Scene,
) -> None:
    scene.reset(seed=3)
    start = scene.distance()
    with robot(scene) as r:
        picking = Picking(r, PANDA, camera=scene.cameras()[0])
        for _ in range(4):
            picked = picking.act(scene.env.oracle(scene.observe(), scene.goal))
            assert picked.tracked is not None and picked.tracked.error < 0.06
        health = r.health()
        home = r.observe()["q"]
    assert scene.distance() < start / 2
    assert scene.distance() < Rope.THRESHOLD["goal"]
    assert not health.interventions and health.state == "armed"
    np.testing.assert_allclose(home, PANDA.column("home"), atol=0.005)


def test_its_camera_gives_the_env_s_very_image(scene: Scene) -> None:
    scene.reset(seed=5)
    twin = Rope()
    twin.reset(seed=5)
    with robot(scene) as r:
        np.testing.assert_array_equal(r.observe()["rgb"], twin.render())
    twin.close()


def test_a_rope_is_carried_by_fingers_that_close_on_it_and_by_no_others(scene: Scene) -> None:
    scene.reset(seed=0)
    link = scene.env.engine.grips()[10]
    dt = 0.02
    for width in (0.01, 0.05):  # closed from the start, then open: nothing is held
        scene.follow(link, width=width, dt=dt)
        assert scene.env.engine.held == -1
    scene.follow(link + [0, 0, 0.1], width=0.01, dt=dt)  # closes too high
    assert scene.env.engine.held == -1
    scene.follow(link, width=0.05, dt=dt)
    scene.follow(link + [0.005, 0, 0.01], width=0.01, dt=dt)
    assert scene.env.engine.held == 10
    for step in range(50):
        scene.follow(link + [0.005, 0.001 * step, 0.01], width=0.01, dt=dt)
    carried = scene.env.engine.grips()[10]
    np.testing.assert_allclose(carried - link, [0, 0.049, 0], atol=0.01)
    moves = scene.moves
    scene.follow(link, width=0.05, dt=dt)
    for _ in range(20):
        scene.follow(link, width=0.05, dt=dt)
    assert scene.env.engine.held == -1 and scene.moves > moves
    rested, moves = scene.env.engine.points(), scene.moves
    scene.follow(link + [0.1, 0.1, 0], width=0.05, dt=1.0)
    np.testing.assert_array_equal(scene.env.engine.points(), rested)
    assert scene.moves == moves


def test_what_is_out_of_reach_is_refused_and_nothing_moves(scene: Scene) -> None:
    far = replace(PANDA, position=(-0.8, 0.0, 0.0))
    driver = SimulatedDriver(far, scene=scene)
    safety = SafetyFilter(far, SafetyFilter.Config(low=(-0.7, -0.5, 0.01)))
    with LocalRobot(driver, Supervisor(safety)) as r:
        before, now = r.observe()["q"], driver.now()
        picked = Picking(r, far, camera=scene.cameras()[0]).act(np.array([0.8, 0.8, 0, 0.0]))
        assert "out of reach" in picked.refused and picked.tracked is None
        assert driver.now() == now
        np.testing.assert_array_equal(r.observe()["q"], before)


def test_an_action_points_at_the_table_through_the_camera(scene: Scene) -> None:
    with robot(scene) as r:
        top = scene.cameras()[0]
        picking = Picking(r, PANDA, camera=top)
        view = scene.env.config.view
        for action in ([0.5, -0.25, 1.0, -1.0], [-0.9, 0.7, 0.3, 0.4]):
            pick, place = picking.points(np.array(action))
            np.testing.assert_allclose(pick, np.array(action[:2]) * view, atol=1e-6)
            expected = np.clip(pick + 0.1 * np.array(action[2:]), -0.25, 0.25)
            np.testing.assert_allclose(place, expected, atol=1e-6)
        # Any camera: what it projects to a pixel, the pixel leads back to.
        oblique = Camera("side", (0.7, 0.2, 0.6), width=96, height=64)
        turned = Picking(r, PANDA, camera=oblique)
        pixel, _ = oblique.project(np.array([0.1, -0.05, 0.009]))
        np.testing.assert_allclose(on_table(oblique, pixel, height=0.009), [0.1, -0.05], atol=1e-9)
        pick, place = turned.points(np.array([0.0, 0.0, 1.0, 0.0]))
        np.testing.assert_allclose(np.linalg.norm(place - pick), 0.1, atol=1e-9)
        assert place[1] > pick[1]  # to the right of who looks from +x
        with pytest.raises(ShapeError, match="does not show the table"):
            on_table(Camera("up", (0.0, 0.0, 0.1), (1.0, 0.0, 0.5)), np.zeros(2), height=0)
        for bad in ([0, 0, 0], [0, 0, 0, np.nan], [0, 0, 2, 0]):
            with pytest.raises(ShapeError, match=r"Picking\.action"):
                picking.act(np.array(bad))


def test_a_motion_is_followed_by_velocities_alone(scene: Scene) -> None:
    with robot(scene, control="joint_position") as r:
        with pytest.raises(ConfigError, match="need joint_velocity"):
            Tracking(r, width=0.08)
    with robot(scene, lead=0.5) as r:
        for _ in range(10):
            r.send(np.append([0.4, 0.2, 0, 0, 0, 0, 0], 1))
        tracked = Picking(r, PANDA, camera=scene.cameras()[0]).home()
        np.testing.assert_allclose(r.observe()["q"], PANDA.column("home"), atol=0.005)
        assert tracked.actions > 5


def test_a_scene_by_name() -> None:
    driver = SimulatedDriver(PANDA, SimulatedDriver.Config(scene="rope", seed=3))
    assert driver.cameras == ("rgb",) and driver.scene is not None
    driver.close()
    with pytest.raises(ConfigError, match="no rope or cloth"):
        SimulatedDriver(PANDA, SimulatedDriver.Config(scene="tabletop"))
