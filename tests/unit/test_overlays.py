"""Goals over images: where there is colour, and how much."""

import numpy as np
import pytest

from latentplan.errors import ShapeError
from latentplan.sim.deformable.rope import Rope
from latentplan.sim.rendering import overlays
from latentplan.sim.rendering.cameras import Camera


def test_a_mask_is_tinted_its_edge_is_opaque_the_rest_is_as_it_was():
    image = np.full((9, 9, 3), 100, np.uint8)
    mask = np.zeros((9, 9), bool)
    mask[2:7, 2:7] = True
    drawn = overlays.mask(image, mask, colour=(200, 0, 0), opacity=0.5)
    assert drawn[4, 4].tolist() == [150, 50, 50]
    assert drawn[2, 2].tolist() == drawn[6, 4].tolist() == [200, 0, 0]
    assert (drawn[~mask] == 100).all()
    assert (image == 100).all()


def test_points_become_discs_where_the_camera_sees_them():
    camera = Camera("c", (0.0, 0.0, 1.0), up=(0.0, 1.0, 0.0), fovy=90.0, width=101, height=101)
    image = np.zeros((101, 101, 3), np.uint8)
    spots = np.array([[0, 0, 0], [0.5, 0, 0], [0, 0, 2], [30, 0, 0], [1.01, 0, 0]])
    drawn = overlays.points(image, spots, camera=camera, colour=(255, 0, 0), radius=3)
    rows, columns = np.nonzero(drawn[..., 0] > 127)
    near = np.abs(columns - 50) < 10
    assert rows[near].mean() == 50 and columns[near].mean() == 50
    assert near.sum() == pytest.approx(np.pi * 3**2, rel=0.25)
    right = (columns > 60) & (columns < 90)
    assert columns[right].mean() == pytest.approx(75.25, abs=0.3)
    assert (drawn[:, :90] > 0).any(-1).sum() < 120  # nothing of those behind and far away
    assert (drawn[..., 1:] == 0).all()


def test_a_goal_is_drawn_where_it_lies():
    env = Rope(Rope.Config(observe=("rgb", "segmentation")))
    observation, info = env.reset(seed=0)
    goal = info["goal"]["segmentation_top"] == 1
    drawn = overlays.mask(observation["rgb"], goal)
    changed = (drawn != observation["rgb"]).any(-1)
    assert (changed == goal).all()
    keypoints = np.c_[info["goal"]["keypoints"], np.full(21, env.config.radius)]
    dots = overlays.points(observation["rgb"], keypoints, camera=env.cameras()["top"])
    changed = (dots != observation["rgb"]).any(-1)
    assert changed.sum() > 40
    assert (changed & goal).sum() > 0.6 * changed.sum()
    env.close()


def test_another_size_is_refused():
    with pytest.raises(ShapeError, match="mask"):
        overlays.mask(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9), bool))
    with pytest.raises(ShapeError, match="image"):
        overlays.points(
            np.zeros((8, 8, 3), np.uint8), np.zeros((1, 3)), camera=Camera("c", (1.0, 0.0, 1.0))
        )
