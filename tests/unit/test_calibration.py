"""Cameras calibrated from images of a board whose poses are known."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from calibration_images import Studio
from PIL import Image
from scipy.spatial.transform import Rotation

from latentplan import cli
from latentplan.data.store import ZarrStore
from latentplan.errors import ConfigError, MissingDependency, RobotError, SourceError
from latentplan.real_robot.perception import calibration, calibration_samples, calibration_target
from latentplan.real_robot.perception.calibration_target import (
    CalibrationTarget,
    Corners,
    TargetDetector,
)
from latentplan.real_robot.perception.hand_eye import closed_form
from latentplan.robots import camera, description
from latentplan.robots.camera import CalibratedCamera
from latentplan.robots.chain import flange
from latentplan.types import ActionSpec, ArraySpec, Episode, Spec

LENS = (0.08, -0.15, 0.001, -0.0007)
TRUE = CalibratedCamera("front", 480, 360, fx=455.0, fy=457.0, cx=241.0, cy=177.5, distortion=LENS)
EXACT = calibration.Config(joint_std=0.0)  # a simulated arm is where its joints say


@pytest.fixture(scope="module")
def arm():
    pytest.importorskip("cv2")
    return description.load("panda")


@pytest.fixture(scope="module")
def studio(arm):
    return Studio(arm, TRUE, "table")


def gap(found, true):
    """Return how far two cameras are apart, in mm and degrees."""
    pose = np.linalg.inv(true.pose()) @ found.pose()
    turn = Rotation.from_matrix(pose[:3, :3]).magnitude()
    return 1e3 * np.linalg.norm(pose[:3, 3]), np.degrees(turn)


def corners(studio, positions, *, noise=0.0, rng=None):
    """Return what a perfect detector, or one with noise in pixels, would find."""
    board, seen = studio.board, []
    x, y = np.meshgrid(np.arange(1, board.columns), np.arange(1, board.rows))
    points = board.square * np.stack([x, y, 0 * x], -1).reshape(-1, 3)
    for q in positions:
        pose = studio.board_pose(q)
        still = replace(studio.camera, mount="table").mounted("table", np.eye(4))
        pixels = still.project(points @ pose[:3, :3].T + pose[:3, 3])[0]
        seen.append(Corners(points, pixels + (rng.normal(0, noise, pixels.shape) if noise else 0)))
    return seen


@pytest.mark.parametrize(
    ("kind", "mount", "marker"), [("charuco", "flange", 0.0245), ("apriltag", "table", 0.028)]
)
def test_lens_and_pose_are_found_from_images(arm, kind, mount, marker):
    """A dozen small images: within a millimetre; the direction is better with a known lens."""
    shape = CalibrationTarget(kind=kind, columns=6, rows=5, square=0.035, marker=marker)
    studio = Studio(arm, TRUE, mount, board=shape)
    rng = np.random.default_rng(1)
    positions = studio.positions(12, rng)
    finder = TargetDetector(shape)
    seen = [finder.find(studio.image(q, rng, noise=2.0)) for q in positions]
    assert all(found is not None for found in seen)
    blank = CalibratedCamera("front", TRUE.width, TRUE.height)
    found = calibration.calibrate(seen, positions, arm=arm, camera=blank, mount=mount, config=EXACT)
    millimetres, degrees = gap(found.camera, studio.camera)
    assert found.camera.mount == mount and millimetres < 1 and degrees < 0.3
    assert abs(found.camera.fx / TRUE.fx - 1) < 3e-3
    known = calibration.calibrate(
        seen, positions, arm=arm, camera=TRUE, mount=mount, lens_known=True, config=EXACT
    )
    assert known.camera.fx == TRUE.fx
    millimetres, degrees = gap(known.camera, studio.camera)
    assert millimetres < 0.7 and degrees < 0.05
    np.testing.assert_allclose(known.board, studio.carried, atol=2e-3)  # 0.1 degrees, 2 mm


def test_without_noise_the_answer_is_exact(arm, studio):
    positions = studio.positions(8, np.random.default_rng(2))
    found = calibration.calibrate(
        corners(studio, positions), positions, arm=arm, camera=TRUE, mount="table"
    )
    assert max(gap(found.camera, studio.camera)) < 1e-4
    assert found.figures["reprojection_px"] < 1e-4 and found.figures["hand_eye_mm"] < 1e-3
    np.testing.assert_allclose(found.camera.distortion, LENS, atol=1e-5)


def test_the_closed_form_alone_is_right(studio, arm):
    positions = studio.positions(6, np.random.default_rng(3))
    boards = np.stack([studio.board_pose(q) for q in positions])
    x, y = closed_form(boards, flange(arm, positions))
    np.testing.assert_allclose(x, studio.camera.pose(), atol=1e-9)
    np.testing.assert_allclose(y, studio.carried, atol=1e-9)


def test_the_std_tells_the_error_that_an_imprecise_arm_makes(arm, studio):
    """Joints that are 0.1 degrees off: the answers are 2 mm off, and the std told covers that."""
    off, told = [], []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        positions = studio.positions(15, rng)
        seen = corners(studio, positions, noise=0.1, rng=rng)
        believed = positions + np.radians(rng.normal(0, 0.1, positions.shape))
        found = calibration.calibrate(
            seen, believed, arm=arm, camera=TRUE, mount="table", lens_known=True
        )
        off.append(gap(found.camera, studio.camera)[0])
        told.append(found.figures["position_std_mm"])
    error, std = np.sqrt(np.mean(np.square(off))), np.sqrt(np.mean(np.square(told)))
    assert error < 2.5  # a fit that takes the joints as exact is 8 mm off, the closed form 4
    assert 0.8 < std / error < 3


def test_one_image_with_wrong_joints_does_little_and_is_named(arm, studio):
    positions = studio.positions(15, np.random.default_rng(4))
    seen = corners(studio, positions, noise=0.1, rng=np.random.default_rng(5))
    believed = positions.copy()
    believed[7] += 0.1
    found = calibration.calibrate(
        seen, believed, arm=arm, camera=TRUE, mount="table", lens_known=True
    )
    assert gap(found.camera, studio.camera)[0] < 2
    assert found.errors.argmax() == 7 and found.errors[7] > 20 * np.median(found.errors)


def test_what_does_not_determine_the_camera_is_refused(arm, studio):
    positions = studio.positions(10, np.random.default_rng(6))
    seen = corners(studio, positions)
    with pytest.raises(RobotError, match=r"images: 5 of 10 show 8 corners .* needed are 6"):
        few = [*seen[:5], *[None] * 5]
        calibration.calibrate(few, positions, arm=arm, camera=TRUE, mount="table")
    row = [Corners(points[:7], pixels[:7]) for points, pixels in seen]
    with pytest.raises(RobotError, match="images: 0 of 10 show 6 corners of the board, not all in"):
        config = calibration.Config(corners=6)
        calibration.calibrate(row, positions, arm=arm, camera=TRUE, mount="table", config=config)
    nearly = [Corners(points[:8], pixels[:8]) for points, pixels in seen]
    with pytest.raises(RobotError, match="lens: the images do not determine it"):
        calibration.calibrate(nearly, positions, arm=arm, camera=TRUE, mount="table")
    some = [*row[:2], *seen[2:]]
    result = calibration.calibrate(some, positions, arm=arm, camera=TRUE, mount="table")
    assert np.isnan(result.errors[:2]).all() and not np.isnan(result.errors[2:]).any()
    straight = positions[:1] + np.linspace(-0.3, 0.3, 8)[:, None] * np.eye(7)[6]
    with pytest.raises(RobotError, match=r"turn: the hand turns by 1\d\.\d degrees about one axis"):
        calibration.calibrate(
            corners(studio, straight), straight, arm=arm, camera=TRUE, mount="table"
        )
    with pytest.raises(ConfigError, match="no mount named 'wrist'"):
        calibration.calibrate(seen, positions, arm=arm, camera=TRUE, mount="wrist")


def test_a_board_is_drawn_at_its_true_size(tmp_path, arm):
    for kind in ("charuco", "apriltag"):
        shape = CalibrationTarget(kind=kind, columns=5, rows=4)
        drawn, scale = shape.image(dpi=150)
        found = TargetDetector(shape).find(drawn)
        assert found is not None
        assert len(found.points) == (12 if kind == "charuco" else 80)
        margin = round(shape.square * scale) // 2 - 0.5
        np.testing.assert_allclose(found.pixels, found.points[:, :2] * scale + margin, atol=0.2)
    arguments = ["calibrate", "board", "columns=5", "rows=4", "--out"]
    assert cli.main([*arguments, str(tmp_path / "b.png")]) == 0
    with Image.open(tmp_path / "b.png") as image:
        metres = image.width / image.info["dpi"][0] * 0.0254
    assert metres == pytest.approx(6 * 0.03, abs=1e-3)
    assert cli.main([*arguments, str(tmp_path / "b.pdf")]) == 0
    assert (tmp_path / "b.pdf").read_bytes().startswith(b"%PDF")
    assert cli.main([*arguments, str(tmp_path / "b.gif")]) == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "chess"}, "no kind named 'chess'; known: apriltag, charuco"),
        ({"columns": 2}, r"CalibrationTarget\.columns: 2 is not within"),
        ({"marker": 0.03}, r"CalibrationTarget\.marker: 0\.03 is not within"),
    ],
)
def test_a_board_that_cannot_be_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        CalibrationTarget(**values)


def test_a_dictionary_is_known_and_large_enough(arm):
    with pytest.raises(ConfigError, match="no dictionary named '5x5_10'; did you mean '5x5_100'"):
        TargetDetector(CalibrationTarget(dictionary="5X5_10"))
    with pytest.raises(ConfigError, match="4x4_50 has 50 markers, 12 x 10 charuco needs 60"):
        TargetDetector(CalibrationTarget(columns=12, rows=10, dictionary="4x4_50"))


def test_without_opencv_the_line_to_type_is_told(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(MissingDependency, match="cv2"):
        calibration_target.library()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, studio):
    """Return a folder of ten images and their joints; the last does not show the board."""
    path, rng = tmp_path_factory.mktemp("poses"), np.random.default_rng(7)
    positions = studio.positions(10, rng)
    names = [joint.name for joint in studio.arm.joints]
    with (path / "joints.csv").open("w", newline="") as f:
        table = csv.writer(f)
        table.writerow(["image", *reversed(names)])
        for i, q in enumerate(positions):
            image = studio.image(q, rng) if i < 9 else np.zeros((360, 480, 3), np.uint8)
            Image.fromarray(image).save(path / f"{i:02}.png")
            table.writerow([f"{i:02}.png", *q[::-1]])
    return path


def test_a_folder_is_calibrated_by_the_command(folder, tmp_path, studio, capsys):
    out = tmp_path / "front.yaml"
    command = ["calibrate", str(folder), "--camera", "front", "--out", str(out)]
    assert cli.main(command) == 0
    told = capsys.readouterr().out
    assert "9 of 10" in told and "no target in 09.png" in told and "reprojection 0." in told
    found = camera.load(str(out))
    assert (found.name, found.mount, found.width) == ("front", "table", 480)
    assert gap(found, studio.camera)[0] < 1
    # Its lens serves a second time, and a robot's file may name it.
    assert cli.main([*command[:-1], str(tmp_path / "again.yaml"), "--lens", str(out)]) == 0
    assert camera.load(str(tmp_path / "again.yaml")).fx == found.fx
    assert cli.main([*command, "--robot", "ur5e"]) == 2
    assert "shoulder_pan" in capsys.readouterr().err


def test_images_without_the_board_are_told(folder, tmp_path, capsys):
    lines = (folder / "joints.csv").read_text().splitlines()
    (tmp_path / "joints.csv").write_text("\n".join([lines[0], lines[-1]]))
    (tmp_path / "09.png").write_bytes((folder / "09.png").read_bytes())
    command = ["calibrate", str(tmp_path), "--out", str(tmp_path / "c.yaml"), "columns=9"]
    assert cli.main(command) == 2
    assert "no image of 1 shows a charuco target, 9 x 6" in capsys.readouterr().err
    assert not (tmp_path / "c.yaml").exists()


def test_a_store_is_read_where_the_arm_rests(tmp_path, arm, studio):
    """Of a recorded episode: two rests, and the way between them, which is no use."""
    rng = np.random.default_rng(8)
    first, last = studio.positions(2, rng)
    way = np.linspace(first, last, 5)
    q = np.concatenate([np.repeat(way[:1], 3, 0), way[1:-1], np.repeat(way[-1:], 3, 0)])
    dq = np.zeros_like(q)
    dq[3:6] = 0.2
    images = rng.integers(0, 255, (len(q), 24, 32, 3), dtype=np.uint8)
    observation = {
        "q": ArraySpec((7,)),
        "dq": ArraySpec((7,)),
        "front": ArraySpec((24, 32, 3), "uint8"),
    }
    rows = {"q": q.astype(np.float32), "dq": dq.astype(np.float32), "front": images}
    path, spec = str(tmp_path / "poses.zarr"), Spec(observation, ActionSpec((0.0,), (1.0,)))
    nothing = np.zeros((len(q) - 1, 1), np.float32)
    with ZarrStore.create(path, spec) as store:
        store.append(Episode(rows, nothing, nothing[:, 0]))
    shots = list(calibration_samples.read(path, arm, camera="front"))
    assert [shot.name for shot in shots] == ["episode 0 row 0", "episode 0 row 7"]
    np.testing.assert_array_equal(shots[1].image, images[7])
    np.testing.assert_allclose(shots[1].q, last, atol=1e-6)
    with pytest.raises(SourceError, match=r"no images of a camera 'rgb'; name one of: front"):
        list(calibration_samples.read(path, arm, camera="rgb"))
    with pytest.raises(SourceError, match=r"q is of shape \(7,\), need \(6,\) for the ur5e"):
        list(calibration_samples.read(path, description.load("ur5e"), camera="front"))


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({}, "holds neither of joints.csv and joints.json"),
        ({"joints.csv": "image\n", "joints.json": "[]"}, "holds both of"),
        ({"joints.csv": "file,joint1\n"}, "no column `image`"),
        ({"joints.json": "[]"}, "names no image"),
        ({"joints.json": "{"}, "not JSON that can be read"),
        ({"joints.json": "{}"}, "names no image"),
        ({"joints.json": json.dumps([{"image": "a.png", "q": {"joint1": 0}}])}, "joint2, joint3"),
        ({"joints.json": [float("nan")] * 7}, "need finite rad"),
        ({"joints.json": ["x"] * 7}, "could not convert"),
        ({"joints.json": [0.0] * 7}, r"a\.png: not a whole PNG or"),
    ],
)
def test_a_folder_that_is_none_is_one_line(tmp_path, arm, lists, message):
    for name, text in lists.items():
        if isinstance(text, list):
            names = [joint.name for joint in arm.joints]
            q = dict(zip(names, text, strict=True))
            text = json.dumps([{"image": "a.png", "q": q}])
        (tmp_path / name).write_text(text)
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(SourceError, match=message) as e:
        list(calibration_samples.read(str(tmp_path), arm, camera="rgb"))
    assert "\n" not in str(e.value)
