"""What ROS messages hold: images of any encoding, joints of any order, settings of topics."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from latentplan.data.ros_images import ENCODINGS
from latentplan.errors import ConfigError, LatentplanError, RobotError
from latentplan.real_robot.backends import joint_readings
from latentplan.real_robot.backends.topics import END_VELOCITIES, Inbox, Topics, pixels, twist_of
from latentplan.real_robot.robot import Setpoint
from latentplan.robots.chain import Chain
from latentplan.robots.description import load
from latentplan.sim.rendering.cameras import Camera

PANDA = load("panda")
NAMES = [joint.name for joint in PANDA.joints]
VIEW = Camera("front", (1.1, 0.0, 0.7), width=20, height=16)


def image(encoding: str, values: Any, *, big: bool = False, padding: int = 0) -> SimpleNamespace:
    """Return a sensor_msgs/Image of an array (h, w, channels)."""
    height, width, _ = values.shape
    rows = values.astype(values.dtype.newbyteorder(">" if big else "<"))
    raw = [row.tobytes() + b"\x7f" * padding for row in rows]
    return SimpleNamespace(
        encoding=encoding,
        height=height,
        width=width,
        step=len(raw[0]),
        is_bigendian=int(big),
        data=b"".join(raw),
    )


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("big", [False, True])
def test_a_image_is_the_same_in_any_encoding(encoding: str, padding: int, big: bool) -> None:
    rng = np.random.default_rng(0)
    wanted = rng.integers(0, 256, (16, 20, 3)).astype(np.uint8)
    if "mono" in encoding or encoding == "8UC1":
        wanted[:] = wanted[..., :1]
        sent = wanted[..., :1]
    else:
        sent = wanted[..., ::-1] if encoding.startswith("bgr") else wanted
        if "a" in encoding:
            sent = np.concatenate([sent, rng.integers(0, 256, (16, 20, 1)).astype(np.uint8)], -1)
    if "16" in encoding:
        sent = sent.astype(np.uint16) * 256 + rng.integers(0, 256, sent.shape)
        sent = sent.astype(np.uint16)
    found = pixels("front", image(encoding, sent, big=big, padding=padding))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"encoding": "bayer_rggb8"}, "front: encoding 'bayer_rggb8', known: rgb8, bgr8"),
        ({"data": b"\0" * 959}, "959 bytes in rows of 60 are no rgb8 of 20x16"),
        ({"step": 59}, "960 bytes in rows of 59"),
        ({"width": 0}, "no rgb8 of 0x16"),
        ({"height": -1}, "no rgb8 of 20x-1"),
    ],
)
def test_what_is_no_image_is_refused(change: dict[str, Any], line: str) -> None:
    message = image("rgb8", np.zeros((16, 20, 3), np.uint8))
    vars(message).update(change)
    with pytest.raises(RobotError, match=line):
        pixels("front", message)


def states(names: list[str], q: Any, dq: Any) -> SimpleNamespace:
    return SimpleNamespace(name=names, position=list(q), velocity=list(dq))


def test_joints_come_in_any_order_and_with_others() -> None:
    inbox = Inbox(PANDA, [], Topics(finger="finger", finger_scale=2.0))
    assert inbox.reading() is None
    order = [3, 0, 6, 2, 1, 5, 4]
    names = ["other", *(NAMES[i] for i in order), "finger"]
    inbox.joints(states(names, [9, *order, 0.03], [9, *np.negative(order), 0]), stamp=7.5)
    reading = inbox.reading()
    assert reading is not None and reading.stamp == 7.5
    assert (reading.q.tolist(), reading.dq.tolist()) == (list(range(7)), [-i for i in range(7)])
    assert reading.gripper == 0.06
    assert abs(time.monotonic() - reading.received) < 5


def test_a_bad_message_is_told_once_even_if_good_ones_follow() -> None:
    inbox = Inbox(PANDA, [VIEW], Topics())
    good = states(NAMES, [0] * 7, [0] * 7)
    inbox.joints(good, stamp=1)
    inbox.joints(states(NAMES[1:], [0] * 6, [0] * 6), stamp=2)
    inbox.joints(good, stamp=3)
    with pytest.raises(RobotError, match=r"joint_states\.name: joint1 missing"):
        inbox.reading()
    reading = inbox.reading()
    assert reading is not None and reading.stamp == 3
    inbox.image("front", image("rgb8", np.zeros((8, 8, 3), np.uint8)), stamp=1)
    with pytest.raises(RobotError, match="front: an image of 8x8 pixels, need 20x16"):
        inbox.reading()
    assert not inbox.images()
    inbox.image("front", image("rgb8", np.ones((16, 20, 3), np.uint8)), stamp=1)
    assert inbox.images()["front"].pixels.sum() == 960


def test_another_device_on_the_topic_is_no_fault_but_it_alone_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(joint_readings, "PATIENCE", 0.02)
    inbox = Inbox(PANDA, [], Topics())
    inbox.joints(states(["left_finger"], [0.1], [0]), stamp=1)
    assert inbox.reading() is None
    time.sleep(0.03)
    with pytest.raises(RobotError, match=r"joint1, .* missing, found left_finger; use the desc"):
        inbox.reading()
    inbox.joints(states(NAMES, [0] * 7, [0] * 7), stamp=1)
    assert inbox.reading() is not None


def test_joints_may_have_other_names_in_messages() -> None:
    names = tuple(f"panda_{name}" for name in NAMES)
    inbox = Inbox(PANDA, [], Topics(joints=names))
    inbox.joints(states(list(names), range(7), range(7)), stamp=1)
    reading = inbox.reading()
    assert reading is not None and reading.q.tolist() == list(range(7))
    with pytest.raises(ConfigError, match=r"Topics\.joints: found a, a; need a name of its own"):
        Inbox(PANDA, [], Topics(joints=("a", "a")))


@pytest.mark.parametrize(
    "values",
    [
        {"mode": "torque"},
        {"ahead": 0.5},
        {"dt": 1.0},
        {"end_velocity": "half"},
        {"patience": -1},
        {"joint_states": ""},
        {"finger_scale": 0},
    ],
)
def test_settings_out_of_range_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(LatentplanError, match=rf"Topics\.{next(iter(values))}"):
        Topics(**values)


def test_each_camera_has_a_topic() -> None:
    assert Topics().image_topics(["a", "b"]) == ("a/image_raw", "b/image_raw")
    assert Topics(images=("x",)).image_topics(["a"]) == ("x",)
    with pytest.raises(ConfigError, match=r"Topics\.images: found 1 topics for the cameras a, b"):
        Topics(images=("x",)).image_topics(["a", "b"])
    ends = {
        kind: Topics(end_velocity=kind).end_velocities(Setpoint(*[np.full(2, 0.5)] * 3, 0.0))
        for kind in END_VELOCITIES
    }
    assert ends == {"none": [], "zero": [0, 0], "setpoint": [0.5, 0.5]}


def test_a_twist_is_how_the_end_effector_moves() -> None:
    chain, rng = Chain(PANDA), np.random.default_rng(1)
    q, dq = PANDA.column("home") + rng.normal(0, 0.2, 7), rng.normal(0, 0.5, 7)
    twist = twist_of(PANDA, q, dq)
    before, after = chain.ee(np.array([q - 1e-5 * dq, q + 1e-5 * dq]))
    c, s = np.cos(PANDA.yaw), np.sin(PANDA.yaw)
    world = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ twist[:3]
    np.testing.assert_allclose(world, (after - before) / 2e-5, atol=1e-6)
    np.testing.assert_allclose(twist_of(PANDA, q, np.eye(7)[0])[3:], [0, 0, 1], atol=1e-6)
