"""A camera of a robot's file: where pixels look, and what is refused."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from latentplan.errors import ConfigError, RobotError, ShapeError
from latentplan.real_robot.robot import View
from latentplan.robots import description
from latentplan.robots.camera import CalibratedCamera
from latentplan.robots.chain import flange, in_base
from latentplan.robots.kinematics import Kinematics
from latentplan.sim.rendering.cameras import Camera

UR5E = (Path(str(files("latentplan"))) / "configs" / "robot" / "ur5e.yaml").read_text()
ROW = """\
  - {name: front, width: 640, height: 480, fx: 610.5, fy: 611.0, cx: 321.2, cy: 242.8,
     distortion: [0.1, -0.2, 0.001, -0.0005, 0.05], position: [0.9, 0.0, 0.6],
     rotation: [0.2705981, -0.6532815, -0.6532815, 0.2705981]}
"""
LENS = (0.1, -0.2, 0.001, -0.0005, 0.05)


def test_a_pinhole_is_the_simulated_camera_of_the_same_numbers() -> None:
    simulated = Camera("c", (0.7, -0.3, 0.6), fovy=50.0, width=80, height=60)
    k = simulated.intrinsics()
    lens = {"fx": k[0, 0], "fy": k[1, 1], "cx": k[0, 2], "cy": k[1, 2]}
    pose = np.linalg.inv(simulated.extrinsics())
    camera: View = (real := CalibratedCamera("c", 80, 60, **lens).mounted("table", pose))
    np.testing.assert_allclose(camera.extrinsics(), simulated.extrinsics(), atol=1e-12)
    depth = np.random.default_rng(0).uniform(0.5, 1, (60, 80))
    points = simulated.unproject(depth)
    np.testing.assert_allclose(real.unproject(depth), points, atol=1e-9)
    pixels, along = real.project(points)
    np.testing.assert_allclose(pixels, simulated.project(points)[0], atol=1e-6)
    np.testing.assert_allclose(along, depth, atol=1e-9)


def test_the_lens_is_opencvs() -> None:
    cv2 = pytest.importorskip("cv2")
    camera = CalibratedCamera("c", distortion=LENS)
    points = np.random.default_rng(0).uniform((-0.4, -0.3, 0), (0.4, 0.3, 0.2), (50, 3))
    seen = camera.extrinsics()
    turn, shift = cv2.Rodrigues(seen[:3, :3])[0], seen[:3, 3]
    theirs = cv2.projectPoints(points, turn, shift, camera.intrinsics(), np.array(LENS))[0]
    pixels, depth = camera.project(points)
    np.testing.assert_allclose(pixels, theirs[:, 0], atol=1e-9)
    rays = camera.rays(pixels) * depth[:, None]
    np.testing.assert_allclose(rays, points @ seen[:3, :3].T + shift, atol=1e-6)


def test_a_pixel_is_a_point_of_the_table_and_of_the_base() -> None:
    arm = description.load("ur5e")
    camera = CalibratedCamera("c", distortion=LENS)
    points = np.random.default_rng(0).uniform((-0.3, -0.2, 0), (0.3, 0.2, 0), (20, 3))
    found = camera.on_plane(camera.project(points)[0], np.array([0, 0, 1.0, 0]))
    np.testing.assert_allclose(found, points, atol=1e-6)
    # The base stands half a metre behind the origin and is turned round.
    np.testing.assert_allclose(in_base(arm, points), points * (-1, -1, 1) - (0.5, 0, 0), atol=1e-12)
    up = camera.mounted("table", np.eye(4))
    assert np.isnan(up.on_plane(np.array([[300.0, 200.0]]), np.array([0, 0, 1.0, 0.1]))).all()


def test_missing_depth_is_no_point() -> None:
    depth = np.full((480, 640), 0.8)
    depth[0, 0], depth[1, 1] = 0, np.nan
    points = CalibratedCamera("c").unproject(depth)
    assert np.isnan(points[[0, 1], [0, 1]]).all() and np.isnan(points).sum() == 6
    with pytest.raises(ShapeError, match="need .h=480, w=640"):
        CalibratedCamera("c").unproject(depth[1:])


@pytest.mark.parametrize("name", ["panda", "ur5e"])
def test_the_flange_is_where_the_hand_begins(name: str) -> None:
    arm = description.load(name)
    low, high = arm.column("low"), arm.column("high")
    q = np.random.default_rng(0).uniform(low, high, (20, len(low)))
    ee = Kinematics(arm).forward(q)
    poses = flange(arm, q)
    tips = poses[:, :3, 3] + arm.gripper.length * poses[:, :3, 2]
    np.testing.assert_allclose(tips, ee[:, :3], atol=1e-9)
    turned = Rotation.from_matrix(poses[:, :3, :3]) * Rotation.from_rotvec([0, 0, arm.gripper.yaw])
    gap = turned.inv() * Rotation.from_quat(ee[:, 3:], scalar_first=True)
    assert gap.magnitude().max() < 1e-9


def test_a_camera_on_the_flange_goes_with_it() -> None:
    arm = description.load("panda")
    wrist = CalibratedCamera("w", mount="flange", position=(0.05, 0, 0), rotation=(1, 0, 0, 0))
    with pytest.raises(RobotError, match=r"camera w: is on the flange.*camera\.at"):
        wrist.extrinsics()
    pose = flange(arm, arm.column("home")[None])[0]
    here = wrist.at(pose)
    assert here.mount == "table"
    np.testing.assert_allclose(here.position, (pose @ [0.05, 0, 0, 1])[:3])
    np.testing.assert_allclose(here.pose()[:3, :3], pose[:3, :3], atol=1e-12)
    still = CalibratedCamera("s")
    assert still.at(pose) is still


def test_a_robots_file_names_its_cameras(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    (tmp_path / "cameras").mkdir()
    other = ROW.replace("name: front", "name: side").replace("  - ", "").strip().strip("{}")
    (tmp_path / "cameras" / "side.yaml").write_text("{" + other + ", calibration: {images: 20}}")
    file.write_text(UR5E + "cameras:\n" + ROW + "  - cameras/side.yaml\n")
    front, side = description.load(str(file)).cameras
    assert (front.name, side.name) == ("front", "side")
    assert front.mount == "table" and front.distortion == LENS and front.fx == 610.5
    assert side.intrinsics().tolist() == front.intrinsics().tolist()
    assert description.load("ur5e").cameras == ()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("fx: 610.5, ", "", r"camera front: fx missing; see latentplan calibrate"),
        ("name: front, ", "", r"camera without a name: name missing"),
        ("fx: 610.5", "fx: 6", r"camera .*fx: 6\.0 is not within \[64"),
        ("fx: 610.5", "f: 6", r"fx missing"),
        ("cx: 321.2", "cx: 640", r"cx: 640\.0 is not within \[0, 639\]"),
        ("width: 640", "width: wide", r"width: found 'wide', needs int"),
        ("0.9, 0.0, 0.6", "0.9, 0.6", r"position: found \[0\.9, 0\.6\], needs tuple"),
        ("0.9, 0.0, 0.6", "0.9, 0.0, .nan", r"position\.z: nan is not within"),
        ("rotation: [0.27", "rotation: [0.97", r"rotation: found .*, need a unit quaternion"),
        ("0.05]", "0.05, 1.0]", r"distortion: found 6 numbers; need k1, k2, p1, p2 and k3"),
        ("[0.1, -0.2", "[-2.1, -0.2", r"distortion: .* folds the image at its edges"),
        ("width: 640", "width: 640, mount: wrist", r"mount: no mount named 'wrist'; known: flange"),
        ("width: 640", "width: 640, lens: 3", r"no key 'lens'"),
        ("  - {", "  - nowhere.yaml\n  - {", r"nowhere\.yaml: cannot be read"),
        ("  - {", "  - 7\n  - {", r"Arm\.cameras: need a list; each is"),
    ],
)
def test_a_wrong_camera_is_one_clear_error(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    file = tmp_path / "odd.yaml"
    assert old in ROW
    file.write_text(UR5E + "cameras:\n" + ROW.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message) as e:
        description.load(str(file))
    assert "\n" not in str(e.value) and str(file) in str(e.value)


def test_two_cameras_of_one_name_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "two.yaml"
    file.write_text(UR5E + "cameras:\n" + ROW + ROW)
    with pytest.raises(ConfigError, match=r"Arm\.cameras: found names .* one of its own"):
        description.load(str(file))
