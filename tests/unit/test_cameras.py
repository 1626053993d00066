"""Cameras: pixels and points agree, in the geometry and in what the engines draw."""

import dataclasses

import numpy as np
import pytest

from latentplan.errors import ConfigError, MissingDependency, ShapeError
from latentplan.sim.deformable.cloth import Cloth
from latentplan.sim.deformable.engines.engine import ENGINES
from latentplan.sim.deformable.rope import Rope
from latentplan.sim.rendering import cameras
from latentplan.sim.rendering.cameras import Camera, unproject
from latentplan.sim.rendering.rectification import rectify

KINDS = ("rgb", "depth", "segmentation")


@pytest.fixture(scope="module", params=sorted(ENGINES["rope"]))
def rope(request):
    config = Rope.Config(engine=request.param, cameras=cameras.NAMES, observe=KINDS, image=96)
    try:
        env = Rope(config)
    except MissingDependency as e:
        pytest.skip(str(e))
    yield env
    env.close()


def test_the_middle_of_the_image_is_the_target():
    camera = Camera("c", (0.3, -0.4, 0.7), target=(0.1, 0.2, 0.0), width=80, height=60)
    pixel, depth = camera.project(np.array(camera.target))
    assert np.allclose(pixel, (39.5, 29.5))
    assert depth == pytest.approx(np.linalg.norm(np.subtract(camera.target, camera.position)))


def test_axes_are_those_of_opencv():
    camera = Camera("c", (0.0, 0.0, 1.0), up=(0.0, 1.0, 0.0), fovy=90.0, width=100, height=100)
    assert np.allclose(camera.axes(), np.diag([1, -1, -1]))
    pixels, depth = camera.project(np.array([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 2.0]]))
    assert np.allclose(pixels[:2], [[99.5, 49.5], [49.5, -0.5]])  # the right and the upper edge
    assert np.allclose(depth, (1, 1, -1))  # the last lies behind
    assert np.allclose(camera.intrinsics(), [[50, 0, 49.5], [0, 50, 49.5], [0, 0, 1]])


@pytest.mark.parametrize("name", cameras.NAMES)
def test_projecting_undoes_unprojecting(name):
    rng = np.random.default_rng(0)
    camera = dataclasses.replace(cameras.of(Rope.Config())[name], width=40, height=30)
    depth = rng.uniform(0.2, 2, (30, 40))
    points = camera.unproject(depth)
    pixels, back = camera.project(points)
    v, u = np.indices(depth.shape)
    assert np.allclose(pixels, np.stack([u, v], -1), atol=1e-9)
    assert np.allclose(back, depth)
    homogeneous = camera.extrinsics() @ np.append(points[3, 7], 1)
    seen = camera.intrinsics() @ homogeneous[:3]
    assert np.allclose(seen[:2] / seen[2], (7, 3))


def test_a_moved_camera_has_another_image():
    camera = cameras.of(Rope.Config())["top"]
    shifted = camera.moved((0.1, 0, 0), (0, 0, 0))
    assert np.allclose(shifted.project(np.array([0.1, 0, 0]))[0], 31.5)
    right = camera.moved((0, 0, 0), (0, np.radians(5), 0))  # y is down: it turns to the right
    where, depth = right.project(np.array([np.tan(np.radians(5)), 0, 0]))
    assert np.allclose(where, 31.5)
    assert depth == pytest.approx(1 / np.cos(np.radians(5)))
    rolled = camera.moved((0, 0, 0), (0, 0, np.pi / 2))
    assert np.allclose(rolled.axes()[0], (0, -1, 0))
    wide = camera.moved((0, 0, 0), (0, 0, 0), zoom=2.0)
    assert wide.intrinsics()[0, 0] == pytest.approx(camera.intrinsics()[0, 0] / 2)
    assert np.allclose(wide.axes(), camera.axes())


def test_the_whole_square_is_in_view_of_every_built_in_camera():
    corners = 0.3 * np.array([(x, y, 0) for x in (-1, 1) for y in (-1, 1)])
    for name, camera in cameras.of(Rope.Config(image=100)).items():
        if name not in ("custom", "top"):  # the top one frames the rope's height, not the table
            pixels, depth = camera.project(corners)
            assert (depth > 0).all() and (np.abs(pixels - 49.5) < 50 + 1e-6).all(), name
            assert np.abs(pixels - 49.5).max() > 49, name  # and no more than that


@pytest.mark.parametrize("name", cameras.NAMES)
def test_the_depth_of_the_table_lies_at_zero(rope, name):
    observation, _ = rope.reset(seed=3)
    points = rope.cameras()[name].unproject(observation[f"depth_{name}"])
    table = observation[f"segmentation_{name}"] == 0
    near = table & (np.abs(points[..., :2]) < 0.6).all(-1)
    # The pixels of an edge show the table, but their depth may be the rope's.
    mask = observation[f"segmentation_{name}"] == 1
    for axis in (0, 1):
        for step in (-1, 1):
            near &= ~np.roll(mask, step, axis)
    assert near.sum() > 2000
    assert np.abs(points[near][:, 2]).max() < 1e-3


@pytest.mark.parametrize("name", cameras.NAMES)
def test_the_depth_of_the_rope_lies_on_the_rope(rope, name):
    observation, _ = rope.reset(seed=3)
    points = rope.cameras()[name].unproject(observation[f"depth_{name}"])
    points = points[observation[f"segmentation_{name}"] == 1]
    assert len(points) > 30
    line = rope._engine.points()
    start, way = line[:-1], np.diff(line, axis=0)
    along = ((points[:, None] - start) * way).sum(-1) / (way**2).sum(-1)
    nearest = start + np.clip(along, 0, 1)[..., None] * way
    gap = np.linalg.norm(points[:, None] - nearest, axis=-1).min(1)
    assert abs(np.median(gap) - rope.config.radius) < 1e-3
    assert gap.max() < rope.config.radius + 3e-3


@pytest.mark.parametrize("name", cameras.NAMES)
def test_keypoints_project_onto_the_segmented_rope(rope, name):
    for seed in range(3):
        observation, _ = rope.reset(seed=seed)
        pixels, _ = rope.cameras()[name].project(rope._engine.points())
        inner = np.rint(pixels[1:-1]).astype(int)  # the ends lie on the edge
        framed = ((inner >= 0) & (inner < 96)).all(1)
        assert framed.any()
        u, v = inner[framed].T
        assert (observation[f"segmentation_{name}"][v, u] == 1).all()


def test_keypoints_project_onto_the_segmented_cloth():
    env = Cloth(Cloth.Config(cameras=("top", "angled"), observe=KINDS, task="fold"))
    observation, _ = env.reset(seed=0)
    for name in ("top", "angled"):
        grid = env._engine.points().reshape(9, 9, 3)[1:-1, 1:-1].reshape(-1, 3)  # not the edge
        u, v = np.rint(env.cameras()[name].project(grid)[0]).astype(int).T
        assert (observation[f"segmentation_{name}"][v, u] == 1).all()
    env.close()


def test_observations_are_the_requested_ones():
    env = Rope(Rope.Config(cameras=("side", "top"), observe=("rgb", "depth"), image=32))
    observation, _ = env.reset(seed=0)
    assert set(observation) == {"rgb", "rgb_side", "depth_side", "depth_top", "keypoints"}
    assert set(env.cameras()) == {"top", "side"}
    for key, array in env.data_spec.observation.items():
        assert (observation[key].shape, observation[key].dtype) == (array.shape, array.dtype)
    assert env.observation_space.contains(dict(observation))
    assert env.data_spec.privileged == ("keypoints",)
    env.close()


def test_more_cameras_do_not_change_the_image(rope):
    plain = Rope(Rope.Config(engine=rope.config.engine, image=96))
    assert list(plain.data_spec.observation) == ["rgb", "keypoints"]
    for seed in range(3):
        want, got = plain.reset(seed=seed)[0], rope.reset(seed=seed)[0]
        assert all(np.array_equal(want[key], got[key]) for key in want)
    plain.close()


def test_custom_cameras_have_the_pose_of_the_config():
    pose = cameras.Pose(position=(0.1, -0.5, 0.4), target=(0.0, 0.1, 0.0), fovy=60.0)
    env = Rope(Rope.Config(cameras=("custom",), observe=("depth",), custom=pose))
    observation, _ = env.reset(seed=0)
    camera = env.cameras()["custom"]
    assert camera.position == pose.position and camera.fovy == 60
    points = camera.unproject(observation["depth_custom"]).reshape(-1, 3)
    assert abs(np.median(points[:, 2])) < 1e-3
    env.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cameras": ("topp",)}, "did you mean 'top'"),
        ({"cameras": ()}, "at least one"),
        ({"cameras": ("top", "top")}, "once"),
        ({"observe": ("colour",)}, "Rope.observe"),
        ({"custom": cameras.Pose(target=(0.5, 0.0, 0.5))}, "must differ"),
        ({"custom": cameras.Pose(up=(-1.0, 0.0, -1.0))}, "must differ"),
        ({"custom": cameras.Pose(position=(np.nan, 0.0, 0.5))}, "must differ"),
        ({"custom": cameras.Pose(fovy=180.0)}, "fovy"),
    ],
)
def test_what_is_no_camera_is_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        Rope.Config(**settings)


def test_a_depth_image_of_another_shape_is_refused():
    with pytest.raises(ShapeError, match="unproject.depth"):
        cameras.of(Rope.Config())["top"].unproject(np.ones((4, 4, 1)))
    with pytest.raises(ShapeError, match="extrinsics"):
        unproject(np.ones((4, 4)), intrinsics=np.eye(3), extrinsics=np.eye(3))


def test_rectifying_moves_a_point_of_the_plane_to_its_pixel():
    wanted = Camera("c", (0.0, 0.0, 1.0), up=(0.0, 1.0, 0.0), fovy=40.0)
    taken = wanted.moved((0.02, -0.01, 0.1), (0.05, -0.04, 0.1), zoom=1.1)
    point = np.array([0.1, -0.05, 0.02])
    rows, columns = np.indices((64, 64))
    u, v = taken.project(point)[0]
    spot = 200 * np.exp(-((columns - u) ** 2 + (rows - v) ** 2) / 8)
    image = np.repeat(spot[..., None], 3, 2).astype(np.uint8)
    seen = rectify(image, taken, wanted, height=0.02)[..., 0] / 1.0
    middle = (seen * columns).sum() / seen.sum(), (seen * rows).sum() / seen.sum()
    assert middle == pytest.approx(wanted.project(point)[0], abs=0.2)  # pixels


def test_rectifying_fills_what_the_image_does_not_contain_with_its_median_colour():
    wanted = Camera("c", (0.0, 0.0, 1.0), up=(0.0, 1.0, 0.0))
    image = np.full((64, 64, 3), (10, 20, 30), np.uint8)
    image[:3] = 255
    away = wanted.moved((5.0, 0.0, 0.0), (0, 0, 0))
    assert (rectify(image, away, wanted) == (10, 20, 30)).all()
    assert rectify(image, wanted, wanted) is image
    with pytest.raises(ShapeError, match=r"rectify\.image"):
        rectify(image[1:], away, wanted)
