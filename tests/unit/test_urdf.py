"""Arms read from URDFs, beside their Denavit-Hartenberg rows and MuJoCo's own loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentplan.errors import ConfigError
from latentplan.real_robot.loop.safety import SafetyFilter
from latentplan.real_robot.robot import Command
from latentplan.robots import description, urdf
from latentplan.robots.chain import Chain, flange
from latentplan.robots.kinematics import Kinematics

LIMIT = '<limit lower="-2.5" upper="2.5" velocity="2" effort="40"/>'
FINGERS = """
<link name="hand"/><link name="left"/><link name="right"/>
<joint name="hand_joint" type="fixed"><parent link="{last}"/><child link="hand"/>
  <origin xyz="0.01 0.02 0.1" rpy="0.1 -0.2 0.3"/></joint>
<joint name="left_joint" type="prismatic"><parent link="hand"/><child link="left"/>
  <axis xyz="0 1 0"/><limit lower="0" upper="0.04" velocity="0.1" effort="10"/></joint>
<joint name="right_joint" type="prismatic"><parent link="hand"/><child link="right"/>
  <axis xyz="0 -1 0"/><limit lower="0" upper="0.04" velocity="0.1" effort="10"/>
  <mimic joint="left_joint"/></joint>
"""
BESIDE = "acceleration: 10, jerk: 500"


def link(name: str) -> str:
    return (
        f'<link name="{name}"><inertial><mass value="1.5"/>'
        '<inertia ixx="1" iyy="1" izz="1" ixy="0" ixz="0" iyz="0"/></inertial></link>'
    )


def joint(i: int, *, xyz: Any, rpy: Any, axis: Any = (0, 0, 1), limit: str = LIMIT) -> str:
    def text(values: Any) -> str:
        return " ".join(repr(float(v)) for v in values)

    return (
        f'{link(f"l{i}")}<joint name="j{i}" type="revolute"><parent link="l{i - 1}"/>'
        f'<child link="l{i}"/><origin xyz="{text(xyz)}" rpy="{text(rpy)}"/>'
        f'<axis xyz="{text(axis)}"/>{limit}</joint>'
    )


def save(folder: Path, joints: list[str], *, more: str = "", beside: str | None = BESIDE) -> Path:
    """Write a URDF, and what it does not say beside it; return its path."""
    path = folder / "mine.urdf"
    text = "".join(joints)
    path.write_text(f'<robot name="mine">{link("l0")}{text}{more}</robot>')
    if beside is not None:
        rows = "".join(f"\n  j{i + 1}: {{{beside}}}" for i in range(len(joints)))
        path.with_suffix(".yaml").write_text(f"joints:{rows}\ngripper: {{length: 0.12}}\n")
    return path


def bent(count: int) -> list[str]:
    """Joints with any origin and axis."""
    rng = np.random.default_rng(count)
    axes = rng.normal(size=(count, 3))
    axes[0], axes[1] = (0, 0, -2), (1, 0, 0)
    return [
        joint(i + 1, xyz=rng.uniform(-0.2, 0.3, 3), rpy=rng.uniform(-3, 3, 3), axis=axes[i])
        for i in range(count)
    ]


def positions(arm: description.Arm, count: int = 100) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.uniform(arm.column("low"), arm.column("high"), (count, len(arm.joints)))


@pytest.mark.parametrize("name", ["panda", "ur5e"])
def test_a_urdf_and_denavit_hartenberg_rows_are_the_same_arm(tmp_path: Path, name: str) -> None:
    wanted = description.load(name)
    # A row of Craig's as the origin of a joint that turns about z.
    rows = [
        joint(
            *(i + 1,),
            xyz=(row.a, -np.sin(row.alpha) * row.d, np.cos(row.alpha) * row.d),
            rpy=(row.alpha, 0, 0),
        )
        for i, row in enumerate(wanted.joints)
    ]
    values = (
        f"\nposition: {list(wanted.position)}\nyaw: {wanted.yaw}\nflange: {wanted.flange}\n"
        f"gripper: {{length: {wanted.gripper.length}, yaw: {wanted.gripper.yaw}}}\n"
    )
    path = save(tmp_path, rows)
    beside = path.with_suffix(".yaml")
    beside.write_text(beside.read_text().partition("gripper")[0] + values)
    arm, q = description.load(str(path)), positions(wanted)
    np.testing.assert_allclose(Chain(arm).ee(q), Chain(wanted).ee(q), atol=1e-9)
    np.testing.assert_allclose(flange(arm, q), flange(wanted, q), atol=1e-9)
    np.testing.assert_allclose(
        Kinematics(arm).forward(q)[:, :3], Kinematics(wanted).forward(q)[:, :3], atol=1e-9
    )


@pytest.mark.parametrize("count", [4, 6, 7])
def test_joints_of_any_origin_and_axis_agree_with_mujocos_own_loader(
    tmp_path: Path, count: int
) -> None:
    import mujoco

    path = save(tmp_path, bent(count), more=FINGERS.format(last=f"l{count}"))
    arm = description.load(str(path))
    assert [j.name for j in arm.joints] == [f"j{i + 1}" for i in range(count)]
    spec = mujoco.MjSpec.from_string(path.read_text())
    spec.compiler.fusestatic = 0
    for name in ("left", "right"):  # MuJoCo wants a mass
        spec.body(name).mass, spec.body(name).inertia = 0.1, (0.1,) * 3
        spec.body(name).explicitinertial = True
    model = spec.compile()
    data, q = mujoco.MjData(model), positions(arm, 50)
    hand = model.body("hand").id
    wanted = np.tile(np.eye(4), (len(q), 1, 1))
    for i, row in enumerate(q):
        data.qpos[:count] = row
        mujoco.mj_kinematics(model, data)
        wanted[i, :3, :3], wanted[i, :3, 3] = data.xmat[hand].reshape(3, 3), data.xpos[hand]
    np.testing.assert_allclose(flange(arm, q), wanted, atol=1e-9)
    ee = Chain(arm).ee(q)
    np.testing.assert_allclose(ee, wanted[:, :3, 3] + 0.12 * wanted[:, :3, 2], atol=1e-9)
    poses = Kinematics(arm).forward(q)
    np.testing.assert_allclose(poses[:, :3], ee, atol=1e-9)


def test_limits_are_the_urdfs_and_those_beside_it(tmp_path: Path) -> None:
    shape = '<collision><origin xyz="0 0 0.1"/><geometry><{}/></geometry></collision></link>'
    rows = bent(4)
    rows[2] = rows[2].replace("</link>", shape.format('cylinder radius="0.03" length="0.2"'), 1)
    path = save(tmp_path, rows)
    beside = path.with_suffix(".yaml")
    beside.write_text(beside.read_text().replace("j2: {", "j2: {velocity: 0.5, home: 0.3, "))
    arm = description.load(str(path))
    assert arm.name == "mine"
    assert arm.column("velocity").tolist() == [2, 0.5, 2, 2]
    assert arm.column("low").tolist() == [-2.5] * 4 and arm.column("torque").tolist() == [40] * 4
    assert arm.column("acceleration").tolist() == [10] * 4 and arm.column("mass")[0] == 1.5
    assert arm.column("home").tolist() == [0, 0.3, 0, 0]
    (capsule,) = arm.joints[2].capsules
    assert np.linalg.norm(np.subtract(capsule[:3], capsule[3:6])) == pytest.approx(0.14)
    assert arm.gripper.length == 0.12


@pytest.mark.parametrize("count", [4, 6])
def test_the_filter_holds_the_limits_of_such_an_arm(tmp_path: Path, count: int) -> None:
    arm = description.load(str(save(tmp_path, bent(count))))
    config = SafetyFilter.Config(velocity=1.0, acceleration=1.0, low=(-4,) * 3, high=(4,) * 3)
    safety = SafetyFilter(arm, config)
    safety.reset(arm.column("home"), gripper=0.0, now=0.0)
    rng, q, dq = np.random.default_rng(1), [safety.q], []
    actions = np.append(rng.choice([-9.0, 9.0], (8, count)), np.full((8, 1), 0.5), axis=1)
    for k, action in enumerate(actions.repeat(40, axis=0)):
        setpoint = safety.step(Command(action, k, k * 0.02), measured=safety.q, now=k * 0.02)
        assert not setpoint.fault
        q.append(setpoint.q)
        dq.append(setpoint.dq)
    assert (np.abs(dq) <= arm.column("velocity") + 1e-9).all()
    gained = np.abs(np.diff(dq, axis=0)) / 0.02
    assert 1 < gained.max() <= 10 + 1e-6
    assert (safety.low - 1e-9 <= q).all() and (q <= safety.high + 1e-9).all()
    assert np.abs(q).max() > 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('upper="2.5" ', "", r"j1, j2, j3, j4: high missing; write them from the data sheet"),
        ('velocity="2"', 'velocity="0"', r"j1, j2, j3, j4: velocity missing"),
        ('name="j3" type="revolute"', 'name="j3" type="continuous"', r"j3: low, high missing"),
        ('name="j3" type="revolute"', 'name="j3" type="prismatic"', r"found 3|joint j3: is prism"),
        ('<child link="l2"/>', '<child link="l9"/>', r"joint j2: no link 'l9'"),
        ('<axis xyz="1.0 0.0 0.0"/>', '<axis xyz="0 0 0"/>', r"joint j2: axis: .* no length"),
        ('lower="-2.5"', 'lower="low"', r"joint j1: limit lower: found 'low', need 1 finite"),
        ("</robot>", "", r"not XML"),
        ('<robot name="mine">', '<robot name="mine"><xacro:macro/>', r"not XML|xacro"),
        ('<robot name="mine">', "<!DOCTYPE robot><robot>", r"a document type is not read"),
    ],
)
def test_a_wrong_urdf_is_one_clear_error(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = save(tmp_path, bent(4))
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=message) as e:
        description.load(str(path))
    assert "\n" not in str(e.value) and "mine.urdf" in str(e.value)


def test_what_a_urdf_has_not_is_asked_for(tmp_path: Path) -> None:
    path = save(tmp_path, bent(4), beside=None)
    with pytest.raises(ConfigError, match=r"j1, j2, j3, j4: acceleration, jerk missing; .*mine\.y"):
        description.load(str(path))
    path = save(tmp_path, bent(4), beside=BESIDE)
    beside = path.with_suffix(".yaml")
    beside.write_text(beside.read_text().replace("j2:", "elbow:"))
    with pytest.raises(ConfigError, match=r"no joint named 'elbow';.* known: j1, j2, j3, j4"):
        description.load(str(path))
    with pytest.raises(ConfigError, match=r"none\.urdf: cannot be read"):
        urdf.read(tmp_path / "none.urdf", required=())


def test_a_tip_may_be_named_and_two_arms_need_one(tmp_path: Path) -> None:
    twin = "".join(bent(8)[4:]).replace('<parent link="l4"/>', '<parent link="l0"/>')
    path = save(tmp_path, bent(4), more=twin)
    with pytest.raises(ConfigError, match=r"several chains are as long, to l4, l8; set tip"):
        description.load(str(path))
    beside = path.with_suffix(".yaml")
    beside.write_text(beside.read_text() + "tip: l4\n")
    assert len(description.load(str(path)).joints) == 4
    beside.write_text(beside.read_text().replace("tip: l4", "tip: l44"))
    with pytest.raises(ConfigError, match=r"tip: no link named 'l44'; did you mean 'l4'"):
        description.load(str(path))
