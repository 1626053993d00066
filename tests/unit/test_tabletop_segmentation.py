"""A table in depth images: what is found of ropes, cloths and boxes whose places are known."""

from __future__ import annotations

import sys

import mujoco
import numpy as np
import pytest

from latentplan.errors import ConfigError, MissingDependency, RobotError, ShapeError
from latentplan.real_robot.backends.sim import SimulatedDriver
from latentplan.real_robot.loop.local import LocalRobot
from latentplan.real_robot.loop.safety import SafetyFilter
from latentplan.real_robot.loop.supervisor import Supervisor
from latentplan.real_robot.motion.tracking import Tracking
from latentplan.real_robot.perception import grasps
from latentplan.real_robot.perception.tabletop_segmentation import TabletopSegmenter
from latentplan.robots import description
from latentplan.robots.camera import CalibratedCamera
from latentplan.robots.kinematics import Unreachable
from latentplan.robots.pick_and_place import PHASES, PickAndPlace
from latentplan.robots.simulated_arm import SimulatedArm
from latentplan.robots.trajectory import Limits
from latentplan.sim.deformable.cloth import Cloth
from latentplan.sim.deformable.rope import Rope
from latentplan.sim.rendering import clouds, mujoco_renderer
from latentplan.sim.rendering.cameras import Camera

CAMERA = Camera("front", (0.55, 0.25, 0.65), target=(0.05, 0.0, 0.0), width=320, height=240)
BOXES = {"red": ((0.04, -0.12), 0.4, (0.028, 0.014, 0.02)), "blue": ((0.0, 0.05), 1.2, (0.02,) * 3)}
SPOT = np.array([0.0, 0.2])


@pytest.fixture(scope="module", autouse=True)
def open3d():
    try:
        clouds.library()
    except MissingDependency as e:
        pytest.skip(str(e))


@pytest.fixture(scope="module")
def arm():
    return description.load("panda")


def boxes(*names):
    """Return an MjSpec of a table and boxes that lie on it, free to move."""
    spec = mujoco.MjSpec()
    spec.visual.quality.shadowsize = 0
    spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_PLANE, size=(2, 2, 0.1))
    for name in names:
        place, yaw, half = BOXES[name]
        turn = (np.cos(yaw / 2), 0, 0, np.sin(yaw / 2))
        body = spec.worldbody.add_body(name=name, pos=(*place, half[2]), quat=turn)
        body.add_freejoint()
        body.add_geom(type=mujoco.mjtGeom.mjGEOM_BOX, size=half, mass=0.05, condim=4)
    spec.add_exclude(bodyname1="world", bodyname2="base")
    return spec


@pytest.fixture(scope="module")
def scenery(arm):
    """Return a simulated arm with two boxes, and what a camera with noise and holes sees."""
    simulated = SimulatedArm(arm, scene=boxes("red", "blue"), solid=True)
    renderer = mujoco_renderer.Renderer(simulated.model, CAMERA)
    depth = renderer.depth(simulated.data)
    renderer.close()
    rng = np.random.default_rng(0)
    depth += rng.normal(0, 1.5e-3, depth.shape)
    depth[rng.random(depth.shape) < 0.1] = 0
    depth[:, :5] = np.nan
    return simulated, depth


@pytest.mark.parametrize(("env", "least"), [(Rope, 0.85), (Cloth, 0.95)])
def test_ropes_and_cloths_are_masked_as_the_simulator_says(env, least):
    made = env(env.Config(cameras=("angled",), observe=("depth", "segmentation"), image=128))
    observation, _ = made.reset(seed=1)
    scene = TabletopSegmenter().look(observation["depth_angled"], made.cameras()["angled"])
    made.close()
    assert np.allclose(scene.plane, (0, 0, 1, 0), atol=1e-3)
    truth = observation["segmentation_angled"] == 1
    assert len(scene.cells) == 1 and not (scene.mask & ~truth).any()
    assert (scene.mask & truth).sum() / truth.sum() > least


def test_a_rope_is_taken_across_and_a_cloth_by_its_edge(arm):
    made = Rope(Rope.Config(cameras=("angled",), observe=("depth",), image=128))
    observation, _ = made.reset(seed=1)
    scene = TabletopSegmenter().look(observation["depth_angled"], made.cameras()["angled"])
    best = grasps.find(scene, arm.gripper)[0]
    line = observation["keypoints"][:, :2]
    near = np.linalg.norm(line - best.point[:2], axis=1).argsort()[:2]
    along = line[near[0]] - line[near[1]]
    assert np.linalg.norm(line - best.point[:2], axis=1).min() < 0.012
    assert not best.edge and best.width < 0.022
    ahead = np.array([np.cos(best.yaw), np.sin(best.yaw)])  # the fingers close across it
    assert abs(ahead @ along) / np.linalg.norm(along) > 0.9
    made.close()
    made = Cloth(Cloth.Config(cameras=("angled",), observe=("depth",), image=128, task="fold"))
    observation, _ = made.reset(seed=0)
    scene = TabletopSegmenter().look(observation["depth_angled"], made.cameras()["angled"])
    corners = observation["keypoints"].reshape(9, 9, 3)[[0, 0, -1, -1], [0, -1, 0, -1], :2]
    first = grasps.find(scene, arm.gripper)[0]
    assert np.linalg.norm(corners - first.point[:2], axis=1).min() < 0.02
    wide = grasps.find(scene, arm.gripper, grasps.Config(clearance=0.039))
    assert all(grasp.edge for grasp in wide)
    assert np.linalg.norm(corners - wide[0].point[:2], axis=1).min() < 0.03
    made.close()


def test_boxes_are_found_through_noise_and_holes(arm, scenery):
    scene = TabletopSegmenter().look(scenery[1], CAMERA)
    assert abs(scene.plane[3]) < 2e-3 and scene.plane[2] > np.cos(np.radians(0.5))
    assert len(scene.cells) == 2
    for place, yaw, half in BOXES.values():
        of = [g for g in grasps.find(scene, arm.gripper) if np.hypot(*(g.point[:2] - place)) < 0.03]
        assert np.hypot(*(of[0].point[:2] - place)) < 6e-3
        assert of[0].width == pytest.approx(2 * min(half), abs=5e-3)
        turned = (of[0].yaw - yaw) % (np.pi / 2)
        assert min(turned, np.pi / 2 - turned) < np.radians(12)
    hidden = TabletopSegmenter().look(scenery[1], CAMERA, hide=scene.labels == 1)
    assert len(hidden.cells) == 1


def test_what_is_seen_is_grasped_carried_and_put_down(arm, scenery):
    """Depth, grasp, motion, contacts: the hand closes at the box, which ends where it should."""
    simulated, depth = scenery
    found = grasps.find(TabletopSegmenter().look(depth, CAMERA), arm.gripper)
    grasp, motion = grasps.carry(PickAndPlace(arm), found, SPOT)
    name = min(BOXES, key=lambda each: np.hypot(*(grasp.point[:2] - BOXES[each][0])))
    simulated.reset()
    measured = simulated.execute(motion)
    closed = np.flatnonzero(motion.phase == PHASES.index("grasp"))[-1]
    assert np.hypot(*(measured.ee[closed, :2] - BOXES[name][0])) < 6e-3
    assert abs(measured.gripper[closed] - grasp.width) < 6e-3  # it holds the box
    lifted = np.flatnonzero(motion.phase == PHASES.index("move"))[0]
    assert measured.ee[lifted, 2] > grasp.point[2] + 0.045
    x, y, z = simulated.data.body(name).xpos
    assert np.hypot(x - SPOT[0], y - SPOT[1]) < 6e-3 and z < BOXES[name][2][2] + 2e-3


def test_an_arm_behind_its_filter_closes_its_fingers_where_the_box_is(arm, scenery):
    """From depth to the joints that the sensors measure, the filter having nothing to change."""
    driver = SimulatedDriver(arm)
    with LocalRobot(driver, Supervisor(SafetyFilter(arm))) as robot:
        shares = (0.8, 0.5, 0.5)
        of = robot.spec.velocity, robot.spec.acceleration, robot.spec.jerk
        kept = Limits(*(share * np.array(each) for share, each in zip(shares, of, strict=True)))
        planner = PickAndPlace(arm, limits=kept)
        found = grasps.find(TabletopSegmenter().look(scenery[1], CAMERA), arm.gripper)
        q = robot.observe()["q"].astype(float)
        grasp, motion = grasps.carry(planner, found, SPOT, start=q)
        closed = np.flatnonzero(motion.phase == PHASES.index("grasp"))[-1]
        Tracking(robot, width=arm.gripper.width).follow(motion.part(slice(0, closed + 1)))
        seen = robot.observe()
        ee = planner.kinematics.forward(seen["q"].astype(float))
        assert not robot.health().interventions
    place = min((each[0] for each in BOXES.values()), key=lambda p: np.hypot(*(ee[:2] - p)))
    assert np.hypot(*(ee[:2] - place)) < 7e-3
    assert np.linalg.norm(ee[:3] - grasp.point) < 3e-3
    assert seen["gripper"][0] == pytest.approx(grasp.width - 0.01, abs=5e-3)  # on air: no box here


def test_the_hand_comes_along_the_normal(arm):
    planner = PickAndPlace(arm)
    normal = np.array([0.15, -0.1, 1.0])
    pick = np.array([0.05, 0.05, 0.03])
    motion = planner.plan(pick, [0.0, -0.1, 0.03], lift=0.05, normal=normal, yaw=0.3, grip=0.03)
    unit = normal / np.linalg.norm(normal)
    end = np.flatnonzero(motion.phase == PHASES.index("grasp"))
    w, x, y, z = motion.ee[end[-1], 3:]
    out = np.array([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)])
    np.testing.assert_allclose(out, -unit, atol=5e-3)
    np.testing.assert_allclose(motion.ee[end[-1], :3], pick, atol=1e-3)
    way = motion.ee[end[0], :3] - pick
    np.testing.assert_allclose(way / np.linalg.norm(way), unit, atol=2e-2)
    assert motion.gripper.min() == pytest.approx(0.03)
    for wrong in ([0, 0, 0], [1, 0, 0.1], [0, 0, -1]):
        with pytest.raises(ShapeError, match=r"PickAndPlace\.normal: found"):
            planner.plan(pick, [0.0, -0.1, 0.03], lift=0.05, normal=np.array(wrong))
    with pytest.raises(Unreachable, match="out of reach"):
        grasps.carry(
            planner,
            [grasps.Grasp(np.array([1.5, 0, 0.03]), unit, 0.0, 0.02, 1, 1.0)],
            np.zeros(2),
        )


def flat(camera, *, height=0.0, tilt=0.0):
    """Return the depth of a plane that meets x = y = 0 at a height, tilted about y by degrees."""
    v, u = np.indices((camera.height, camera.width))
    inverse = np.linalg.inv(camera.extrinsics())
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(camera.intrinsics()).T
    normal = np.array([np.sin(np.radians(tilt)), 0, np.cos(np.radians(tilt))])
    towards = rays @ inverse[:3, :3].T @ normal
    with np.errstate(divide="ignore"):
        away = (height * normal[2] - inverse[:3, 3] @ normal) / towards
    return np.where((away > 0) & (away < 3), away, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d * 0, "0 of 76800 pixels have a depth"),
        (lambda d: d * np.nan, "0 of 76800 pixels have a depth"),
        (lambda d: d * 1000, "need metres; divide millimetres by 1000"),
        (lambda d: flat(CAMERA, tilt=20), "tilted by 20.0 degrees"),
        (lambda d: flat(CAMERA, height=0.08), "0.080 m above the origin"),
        (
            lambda d: d * np.random.default_rng(0).uniform(0.7, 1, d.shape),
            "no table in the depth image, the best plane has",
        ),
    ],
)
def test_a_image_without_a_table_is_one_line(change, message):
    with pytest.raises(RobotError, match=message) as e:
        TabletopSegmenter().look(change(flat(CAMERA)), CAMERA)
    assert "\n" not in str(e.value) and "camera front" in str(e.value)


def test_an_empty_table_and_one_without_a_grasp_are_one_line(arm):
    depth = flat(CAMERA)
    scene = TabletopSegmenter().look(depth, CAMERA)
    assert scene.cells == () and not scene.mask.any()
    with pytest.raises(RobotError, match="table: nothing on it; put something"):
        grasps.find(scene, arm.gripper)
    points = CAMERA.unproject(depth)
    depth[(np.abs(points[..., :2]) < 0.1).all(-1)] -= 0.06  # a block as large as a book
    with pytest.raises(RobotError, match=r"none of 1 objects has a place narrower than 0\.08 m"):
        grasps.find(TabletopSegmenter().look(depth, CAMERA), arm.gripper)


def test_what_does_not_fit_is_refused(monkeypatch):
    with pytest.raises(ShapeError, match=r"camera front: depth: found shape \(9, 9\)"):
        TabletopSegmenter().look(np.ones((9, 9)), CAMERA)
    with pytest.raises(ConfigError, match=r"TabletopSegmenter\.low: .* is not below"):
        TabletopSegmenter.Config(low=(0, 0, 1))
    with pytest.raises(ConfigError, match=r"TabletopSegmenter\.join"):
        TabletopSegmenter.Config(join=1e-3)
    real = CalibratedCamera("c", 320, 240, fx=300, fy=300, cx=159.5, cy=119.5)
    assert TabletopSegmenter().look(np.full((240, 320), 1.0), real).cells == ()
    clouds.library.cache_clear()
    monkeypatch.setitem(sys.modules, "open3d", None)
    with pytest.raises(MissingDependency, match="open3d"):
        TabletopSegmenter()
    clouds.library.cache_clear()
