"""Clouds with a known answer: a plane and a box, a rope on a table."""

import builtins

import numpy as np
import pytest

from latentplan.errors import ConfigError, MissingDependency, ShapeError
from latentplan.sim.deformable.rope import Rope
from latentplan.sim.rendering import clouds
from latentplan.sim.rendering.cameras import Camera


@pytest.fixture
def open3d():
    try:
        clouds.library()
    except MissingDependency as e:
        pytest.skip(str(e))


@pytest.fixture
def table():
    """Return a tilted table with noise of 1 mm, what is on a box 4 to 8 cm above it, the normal."""
    rng = np.random.default_rng(0)
    normal = np.array([0.1, -0.2, 1.0])
    normal /= np.linalg.norm(normal)
    flat = rng.uniform(-0.3, 0.3, (4000, 2))
    points = np.c_[flat, -(flat @ normal[:2]) / normal[2] + 0.4]
    points += rng.normal(0, 1e-3, (4000, 1)) * normal
    box = rng.uniform((-0.05, -0.05), (0.05, 0.05), (500, 2))
    box = np.c_[box, -(box @ normal[:2]) / normal[2] + 0.4]
    box += rng.uniform(0.04, 0.08, (500, 1)) * normal
    mixed = np.concatenate([points, box])
    order = rng.permutation(len(mixed))
    return mixed[order], order >= 4000, normal


def ball(camera, radius):
    """Return the depth image (h, w) of a ball at the origin, nothing behind it within 9 m."""
    v, u = np.indices((camera.height, camera.width))
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(camera.intrinsics()).T
    centre = camera.extrinsics()[:3, 3]
    a, b, c = (rays**2).sum(-1), -2 * rays @ centre, centre @ centre - radius**2
    root = b**2 - 4 * a * c
    return np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / (2 * a), 9.0)


def test_a_plane_is_found_and_what_stands_on_it(table):
    points, on_box, normal = table
    found = clouds.plane(points)
    assert np.linalg.norm(found[:3]) == pytest.approx(1)
    assert np.degrees(np.arccos(found[:3] @ normal)) < 0.1
    assert found[3] == pytest.approx(-0.4 * normal[2], abs=3e-4)
    assert (clouds.above(points, found, gap=0.01) == on_box).all()


def test_the_same_seed_finds_the_same_plane(table):
    points = table[0]
    first = clouds.plane(points, seed=3)
    assert all(np.array_equal(clouds.plane(points, seed=3), first) for _ in range(5))
    found = {clouds.plane(points, seed=seed, candidates=5).tobytes() for seed in range(4)}
    assert len(found) > 1


def test_farthest_points_spread(open3d):
    line = np.c_[np.arange(101) / 100, np.zeros((101, 2))]
    assert sorted(clouds.farthest(line, 5)[:, 0]) == [0, 0.25, 0.5, 0.75, 1]
    assert np.array_equal(clouds.farthest(line[:4], 5), line[:4])
    rng = np.random.default_rng(0)
    points = rng.random((3000, 3))
    chosen = clouds.farthest(points, 64)
    assert len(np.unique(chosen, axis=0)) == 64
    assert (np.linalg.norm(points[:, None] - chosen, axis=-1).min(1) < 0.35).all()
    assert np.array_equal(chosen, clouds.farthest(points, 64))


def test_voxels_hold_one_mean_each(open3d):
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.uniform(0, 0.01, (50, 3)), rng.uniform(0.05, 0.06, (50, 3))])
    found = clouds.voxels(points, 0.03)
    assert np.allclose(found, [points[:50].mean(0), points[50:].mean(0)])
    assert np.allclose(clouds.voxels(points[::-1], 0.03), found)  # in the same order


def test_normals_of_a_ball_point_outwards(open3d):
    camera = Camera("c", (0.5, 0.3, 0.4), width=96, height=96, fovy=30.0)
    settings = clouds.Cloud(points=200, low=(-1, -1, -1), high=(1, 1, 1), normals=True)
    found = clouds.fuse([ball(camera, 0.1)], [camera], settings)
    assert found.shape == (200, 6) and found.dtype == np.float32
    assert np.allclose(np.linalg.norm(found[:, :3], axis=1), 0.1, atol=1e-6)
    assert np.allclose(np.linalg.norm(found[:, 3:], axis=1), 1, atol=1e-5)
    sight = np.array(camera.position) / np.linalg.norm(camera.position)
    inner = found[:, :3] @ sight > 0.05  # not where the line of sight only grazes it
    assert inner.sum() > 60
    assert ((found[:, :3] / 0.1 * found[:, 3:]).sum(1)[inner] > 0.99).all()


def test_two_cameras_see_more_of_a_ball_than_one(open3d):
    sides = [Camera("c", (x, 0.0, 0.1), width=64, height=64, fovy=30.0) for x in (-0.6, 0.6)]
    depths = [ball(camera, 0.1) for camera in sides]
    settings = clouds.Cloud(points=300, low=(-1, -1, -1), high=(1, 1, 1))
    one, both = clouds.fuse(depths[:1], sides[:1], settings), clouds.fuse(depths, sides, settings)
    assert one[:, 0].max() < 0.05 and one[:, 0].min() < -0.09
    assert both[:, 0].max() > 0.09 and both[:, 0].min() < -0.09
    assert np.allclose(np.linalg.norm(both, axis=1), 0.1, atol=1e-6)


def test_few_points_are_repeated_and_none_are_zeros(open3d):
    camera = Camera("c", (0.0, 0.0, 1.0), up=(0.0, 1.0, 0.0), width=64, height=64)
    depth = np.full((64, 64), 1.0)
    depth[10, 10] = depth[40, 20] = 0.9
    found = clouds.fuse([depth], [camera], clouds.Cloud(points=8))
    assert len(np.unique(found, axis=0)) == 2
    assert np.allclose(found[:, 2], 0.1)
    assert np.array_equal(found[:2], found[6:])
    assert (clouds.fuse([np.ones((64, 64))], [camera], clouds.Cloud(points=8)) == 0).all()
    for normals in (True, False):  # voxels and normals of nothing, and of next to nothing
        settings = clouds.Cloud(points=8, voxel=0.01, normals=normals)
        assert np.isfinite(clouds.fuse([np.ones((64, 64))], [camera], settings)).all()
        assert np.allclose(clouds.fuse([depth], [camera], settings)[:, 2], 0.1)


def test_an_env_gives_the_cloud_of_its_rope(open3d):
    settings = clouds.Cloud(points=128, voxel=0.004, normals=True)
    names = ("top", "front", "side")
    env = Rope(Rope.Config(cameras=names, observe=("cloud",), cloud=settings, image=128))
    observation, _ = env.reset(seed=0)
    assert set(observation) == {"rgb", "cloud", "keypoints"}
    cloud = observation["cloud"]
    assert cloud.shape == env.data_spec.observation["cloud"].shape == (128, 6)
    centres = env._engine.grips()
    gap = np.linalg.norm(cloud[:, None, :3] - centres, axis=-1)
    assert gap.min(1).max() < env.config.radius + 0.012  # every point lies on the rope
    assert gap.min(0).max() < env.config.radius + 0.012  # and the rope is covered by points
    again = env.reset(seed=0)[0]["cloud"]
    assert np.array_equal(cloud, again)
    env.close()


def test_the_table_of_a_image_is_taken_away():
    """RANSAC on the whole depth image finds what the simulator's segmentation says."""
    env = Rope(Rope.Config(cameras=("angled",), observe=("depth", "segmentation"), image=128))
    observation, _ = env.reset(seed=0)
    points = env.cameras()["angled"].unproject(observation["depth_angled"])
    flat = points.reshape(-1, 3)
    table = clouds.plane(flat)
    assert np.allclose(table, (0, 0, 1, 0), atol=2e-3)
    found = clouds.above(flat, table, gap=0.004).reshape(128, 128)
    mask = observation["segmentation_angled"] == 1
    assert (found & mask).sum() / (found | mask).sum() > 0.85
    assert not (found & ~mask).any()
    env.close()


def test_without_open3d_the_error_names_the_install_command(monkeypatch):
    real = builtins.__import__

    def missing(name, *rest, **named):
        if name == "open3d":
            raise ModuleNotFoundError("No module named 'open3d'", name="open3d")
        return real(name, *rest, **named)

    clouds.library.cache_clear()
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingDependency, match=r"pip install \"latentplan\[clouds\]\""):
        Rope(Rope.Config(observe=("cloud",)))


def test_what_does_not_fit_is_refused(open3d):
    line = np.linspace((0, 0, 0), (1, 2, 3), 20)
    for few in (np.zeros((0, 3)), np.zeros((2, 3)), np.zeros((9, 3)), line[:2]):
        with pytest.raises(ShapeError, match="plane.points"):
            clouds.plane(few)
    with pytest.raises(ShapeError, match="normals.points"):
        clouds.normals(np.zeros((5, 2)), viewpoint=np.zeros(3))
    with pytest.raises(ConfigError, match="cloud.low"):
        clouds.Cloud(low=(0, 0, 1))
    with pytest.raises(ConfigError, match="cloud.points"):
        clouds.Cloud(points=0)
