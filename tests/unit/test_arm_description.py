"""Arms read from files of values."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from latentplan import config
from latentplan.errors import ConfigError, UnknownName
from latentplan.robots import description

SHIPPED = Path(str(files("latentplan"))) / "configs" / "robot"
UR5E = (SHIPPED / "ur5e.yaml").read_text()


def test_panda_has_the_limits_of_its_data_sheet() -> None:
    arm = description.load("panda")
    assert arm.column("velocity").tolist() == [2.175] * 4 + [2.61] * 3
    assert arm.column("acceleration").tolist() == [15, 7.5, 10, 12.5, 15, 20, 20]
    assert arm.column("jerk").tolist() == [7500, 3750, 5000, 6250, 7500, 10000, 10000]
    assert arm.column("low")[3] == -3.0718 and arm.column("high")[5] == 3.7525


@pytest.mark.parametrize("name", ["panda", "ur5e"])
def test_home_is_within_the_limits(name: str) -> None:
    arm = description.load(name)
    home = arm.column("home")
    assert (arm.column("low") < home).all() and (home < arm.column("high")).all()


def test_an_arm_is_a_file_of_values(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(UR5E.replace("name: ur5e", "name: mine").replace("-0.425", "-0.6"))
    arm = description.load(str(mine))
    assert arm.name == "mine"
    assert arm.joints[2].a == -0.6
    np.testing.assert_array_equal(arm.column("home"), description.load("ur5e").column("home"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("velocity: 3.1415", "velocity: -1", r"Joint\.velocity: -1\.0 is not within"),
        ("torque: 150", "force: 3", r"Joint has no key 'force'.*known: .*torque"),
        ("velocity: 3.1415", "velocity: fast", r"Joint\.velocity: found 'fast', needs float"),
        ("low: -6.283, high: 6.283, ", "", r"joints\.shoulder_pan: low, high missing; see"),
        ("jerk: 500, torque: 28", "torque: 28", r"Arm\.joints\.wrist1: jerk missing"),
        ("low: -6.283", "low: 7", r"Joint\.high: 6\.283 is not within"),
        ("name: elbow", "name: wrist1", r"Arm\.joints: found names .* each needs one of its own"),
        ("0.138, 0.054]", "0.138]", r"Joint\.capsules: found .* need \[x, y, z, x, y, z, radius\]"),
        ("reach: 0.85", "reach: .inf", r"Arm\.reach: inf is not within"),
        ("width: 0.085", "width: 0", r"Gripper\.width: 0\.0 is not within"),
        ("joints:", "links:", r"Arm\.joints: need a list of joints"),
    ],
)
def test_a_wrong_value_is_one_clear_error(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    file = tmp_path / "odd.yaml"
    assert old in UR5E
    file.write_text(UR5E.replace(old, new))
    with pytest.raises(ConfigError, match=message) as e:
        description.load(str(file))
    assert "\n" not in str(e.value)
    assert str(file) in str(e.value)


def test_an_unknown_arm_is_told_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match="no robot named 'pnda'; did you mean 'panda'"):
        description.load("pnda")
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read"):
        description.load("nowhere.yaml")


@pytest.mark.parametrize("file", ["/dev/zero", "pipe", "/dev"])
def test_a_camera_that_is_no_file_is_refused_without_waiting(tmp_path: Path, file: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    values = config.read_yaml(config.FOLDER / "robot" / "ur5e.yaml") | {"cameras": [file]}
    config.save_yaml(tmp_path / "mine.yaml", values)
    with pytest.raises(ConfigError, match="need a regular file"):
        description.load(str(tmp_path / "mine.yaml"))
