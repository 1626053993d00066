"""Each measure on cases whose answer is known."""

import numpy as np
import pytest

from latentplan.sim.deformable import distances


def line(points=21, length=0.4):
    return np.stack([np.linspace(0, length, points), np.zeros(points)], 1)


def sheet(rows=9, columns=9, spacing=0.03):
    y, x = np.mgrid[:rows, :columns] * spacing
    return np.stack([x, y, np.zeros_like(x)], -1).reshape(-1, 3)


def turned(points, angle, shift):
    c, s = np.cos(angle), np.sin(angle)
    moved = np.array(points)
    moved[:, :2] = points[:, :2] @ np.array([[c, s], [-s, c]]) + shift
    return moved


def test_a_rope_has_two_orders():
    orders = distances.rope_orders(21)
    assert distances.matched(line()[::-1], line(), orders=orders) == 0
    assert distances.matched(line() + [0, 0.1], line(), orders=orders) == pytest.approx(0.1)
    bent = line()
    bent[-1, 1] = 0.3
    assert distances.matched(bent, line(), orders=orders) == pytest.approx(0.3 / 21)


def test_a_square_cloth_has_eight_orders_and_another_four():
    orders = distances.grid_orders(9, 9)
    assert len({tuple(o) for o in orders.tolist()}) == 8
    assert all(sorted(o) == list(range(81)) for o in orders.tolist())
    middle = sheet() - sheet().mean(0)
    for quarter in range(4):
        for flip in (1, -1):
            same = turned(middle * [flip, 1, 1], quarter * np.pi / 2, [0, 0])
            assert distances.matched(same, middle, orders=orders) == pytest.approx(0, abs=1e-12)
    assert len({tuple(o) for o in distances.grid_orders(3, 5).tolist()}) == 4
    # A renumbering that is no symmetry of the cloth does not count as the same.
    shuffled = np.random.default_rng(0).permutation(middle)
    assert distances.matched(shuffled, middle, orders=orders) > 0.05


def test_matched_takes_the_height_into_account():
    orders = distances.grid_orders(9, 9)
    assert distances.matched(sheet() + [0, 0, 0.02], sheet(), orders=orders) == pytest.approx(0.02)


@pytest.mark.parametrize("angle", [0.0, 0.3, 1.0, 2.5, -2.0])
def test_aligned_forgets_the_pose_and_nothing_else(angle):
    orders = distances.rope_orders(21)
    bent = np.concatenate([line(11, 0.2), line(11, 0.2)[1:, ::-1] + [0.2, 0]])  # an L
    same = turned(bent, angle, [0.1, -0.05])
    assert distances.aligned(same, bent, orders=orders) == pytest.approx(0, abs=1e-12)
    assert distances.aligned(same[::-1], bent, orders=orders) == pytest.approx(0, abs=1e-12)
    assert distances.aligned(turned(line(), angle, [0, 0]), bent, orders=orders) > 0.02
    # Two halves of a sheet, one 0.02 m higher: seen from above it is flat.
    high = turned(sheet(), angle, [0.1, 0.1])
    high[:40, 2] = 0.02
    assert distances.aligned(high, sheet(), orders=distances.grid_orders(9, 9)) < 1e-12


def test_a_mirrored_letter_is_another_one():
    z = np.array([[0, 1], [1, 1], [0, 0], [1, 0.0]])
    orders = distances.rope_orders(4)
    assert distances.aligned(turned(z, np.pi, [2, 3]), z, orders=orders) < 1e-12
    assert distances.aligned(z * [-1, 1], z, orders=orders) > 0.1


def test_chamfer():
    a = np.array([[0, 0], [1, 0.0]])
    assert distances.chamfer(a, a[::-1]) == 0
    assert distances.chamfer(a, a + [0, 0.5]) == 0.5
    assert distances.chamfer(a, a[:1]) == 0.25  # (mean(0, 1) + 0) / 2
    assert distances.chamfer(a[:1], a) == 0.25


def test_coverage():
    area = 0.24**2
    size = {"rows": 9, "columns": 9, "area": area}
    assert distances.coverage(sheet(), **size) == pytest.approx(1, abs=0.015)
    assert distances.coverage(turned(sheet(), 0.4, [0.1, 0.2]), **size) == pytest.approx(
        1, abs=0.015
    )
    half = sheet()
    half[:, 0] = np.minimum(half[:, 0], 0.24 - half[:, 0])
    assert distances.coverage(half, **size) == pytest.approx(0.5, abs=0.015)
    diagonal = sheet()
    over = diagonal[:, 0] > diagonal[:, 1]
    diagonal[over, :2] = diagonal[over, 1::-1]
    assert distances.coverage(diagonal, **size) == pytest.approx(0.5, abs=0.015)
    assert distances.coverage(sheet() * 0.1, **size) == pytest.approx(0.01, abs=0.005)


def test_mask_iou():
    a, b = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    assert distances.mask_iou(a, b) == 1
    a[:2], b[1:3] = True, True
    assert distances.mask_iou(a, b) == pytest.approx(4 / 12)
    assert distances.mask_iou(a, a) == 1
    assert distances.mask_iou(a, ~a) == 0
