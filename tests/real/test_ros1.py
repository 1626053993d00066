"""An arm behind ROS 1, for real: a master, topics, roslaunch, rosbag, all on the loopback alone.

`make test-ros1` runs it in a network namespace. One rig serves most tests, in their order; the
one that kills the master is the last.
"""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from xmlrpc.client import ServerProxy

import numpy as np
import pytest
import rosbag
import rosgraph
import rospy
import yaml
from real import scenarios
from real.faults import FAULTS, LAST, trial
from real.harness import SPEED, Rig
from real.process import Process
from real.record import Row
from real.scenarios import ROOT, SLACK, until, with_camera
from real.setups import PORT, ROS1
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from latentplan.errors import LatentplanError
from latentplan.real_robot.backends.topics import MODES
from latentplan.real_robot.link.remote import RemoteRobot
from latentplan.real_robot.ros1.mpc_node import build
from latentplan.robots.chain import Chain
from latentplan.robots.description import load

pytestmark = pytest.mark.ros1
TURN = np.append([0.4, 0, 0, 0, 0, 0, 0], 0.5)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    os.environ.update(ROS1.environment)
    folder, busy = tmp_path_factory.mktemp("ros1"), ["backend.master_age=2"]
    with Rig(ROS1, folder, settings=busy, patience=3.0) as rig:
        rospy.init_node("tester", disable_signals=True)
        yield rig


def check(row: Row, limit: float | None) -> None:
    """Assert that a fault stopped the arm in time, or not at all where none is to be."""
    assert row.velocity < 1.01 and row.acceleration < 1.01 and row.non_finite == 0, row
    if limit is None:
        assert row.reaction_ms is None and not row.reason, row
    else:
        assert row.reaction_ms is not None and row.rest_ms is not None, row
        assert row.reaction_ms < SLACK * limit and row.rest_ms < SLACK * (limit + 400), row
        assert row.held, row


@pytest.mark.parametrize("name", [name for name in FAULTS if "ros1" in FAULTS[name].backends])
def test_a_fault_stops_the_arm_and_only_a_fault(rig: Rig, name: str) -> None:
    check(trial(rig, name), FAULTS[name].limit)


def test_reset_is_refused_while_a_sensor_is_silent_or_the_arm_moves(rig: Rig) -> None:
    scenarios.reset_is_refused(rig, silence=1.5)


def test_it_begins_where_the_arm_is_measured_not_where_it_was_sent(rig: Rig) -> None:
    scenarios.begins_where_measured(rig)


def test_another_commander_stops_the_arm_and_keeps_others_from_it(rig: Rig) -> None:
    rig.cruise()
    rival = rospy.Publisher(MODES["trajectory"], JointTrajectory, queue_size=1)
    until(lambda: rig.health()["state"] == "fault", within=SLACK * 1.2)
    assert f"/tester publishes on /{MODES['trajectory']}, too" in rig.health()["reason"]
    node = rig.processes["node"]
    node.signal(signal.SIGKILL)
    node.popen.wait()
    assert "/tester publishes on" in refused(rig)
    rival.unregister()
    renew(rig)
    rig.go()
    assert "a node /latentplan runs and may move the arm" in refused(rig)
    assert rig.health()["state"] == "armed"


def test_a_node_that_is_terminated_lets_the_arm_rest_first(rig: Rig) -> None:
    for end in ("SIGTERM", "rosnode kill"):
        renew(rig)
        rig.cruise()
        node, begin = rig.processes["node"], time.monotonic()
        if end == "SIGTERM":
            node.signal(signal.SIGTERM)
            assert node.popen.wait(SLACK * 2) == 0
        else:
            uri = rosgraph.Master("/tester").lookupNode("/latentplan")
            ServerProxy(uri).shutdown("/tester", "a person wants it")
        time.sleep(0.8)
        scenarios.rested(rig)
        commands, _ = rig.record(rig.begun)
        assert commands.rows[-1, 0] - begin < SLACK * 0.6, end
        if end == "rosnode kill":
            assert "shuts this node down" in rig.health()["reason"]


def test_a_node_that_is_killed_leaves_the_arm_where_it_was_sent(rig: Rig) -> None:
    renew(rig)
    scenarios.killed(rig, within=0.05)
    renew(rig)


@pytest.mark.parametrize("mode", ["positions", "twist"])
def test_setpoints_go_out_as_they_are_asked_for(rig: Rig, mode: str) -> None:
    from geometry_msgs.msg import TwistStamped
    from std_msgs.msg import Float64MultiArray

    heard: list[Any] = []
    kind = TwistStamped if mode == "twist" else Float64MultiArray
    listener = rospy.Subscriber(MODES[mode], kind, heard.append)
    renew(rig, f"backend.mode={mode}")
    rig.go()
    if mode == "positions":
        until(lambda: abs(heard[-1].data[0] - heard[0].data[0]) > 0.05 if heard else False)
        _, joints = rig.record(rig.begun)
        assert np.abs(joints.dq[:, 0]).max() > 0.5 * SPEED
    else:  # nothing follows a twist here, so the reference runs ahead until that is a fault
        until(lambda: rig.health()["state"] == "fault")
        assert "the reference is" in rig.health()["reason"]
        fastest = max(heard, key=lambda m: abs(m.twist.angular.z))
        assert fastest.header.frame_id == "base_link"
        turn, linear = fastest.twist.angular, fastest.twist.linear
        (ee,) = Chain(load("panda")).ee(np.array([load("panda").column("home")]))
        radius = np.hypot(*(ee - load("panda").position)[:2])
        assert abs(turn.x) + abs(turn.y) < 1e-3 < abs(turn.z)
        assert np.hypot(linear.x, linear.y) == pytest.approx(radius * abs(turn.z), rel=0.02)
    listener.unregister()
    renew(rig)


def test_what_is_missing_is_an_error_of_one_line(rig: Rig) -> None:
    rig.processes.pop("node").end()
    assert "no subscriber of nowhere for 0.2 s" in refused(
        rig, "backend.command=nowhere", "backend.patience=0.2"
    )
    assert "Ros1Driver.master_age: 99.0 is not within [0.05, 10]" in refused(
        rig, "backend.master_age=99"
    )
    assert "no master answers at http://127.0.0.1:9" in refused(
        rig, "backend.latency=0.3", ROS_MASTER_URI="http://127.0.0.1:9"
    )
    renew(rig)


def test_roslaunch_starts_a_node_that_obeys_services_and_takes_goals(
    rig: Rig, tmp_path: Path
) -> None:
    for name in ("node", "planner"):
        rig.processes.pop(name).end()
    file = tmp_path / "panda.yaml"
    file.write_text(yaml.safe_dump(with_camera()))
    config = tmp_path / "parameters.yaml"
    parameters = {"safety": WIDE, "supervisor": PATIENT, "backend": {"master_age": 5.0}}
    config.write_text(yaml.safe_dump(parameters))
    given = [f"robot:={file}", f"config:={config}", "address:=127.0.0.1:15757", "ns:=/left"]
    remapped = ["joint_states:=/joint_states", f"command:=/{MODES['trajectory']}"]
    relay = rospy.Publisher("/left/front/image_raw", Image, queue_size=1)
    camera = rospy.Subscriber("/front/image_raw", Image, relay.publish)
    state = partial(rospy.wait_for_message, "/left/mpc/state", String, 5)
    with launched("mpc.launch", *given, *remapped) as launch:
        rospy.wait_for_service("/left/mpc/reset", 90)
        assert rospy.get_param("/left/mpc/safety/velocity") == 0.3
        image, text = (
            rospy.Publisher(f"/left/mpc/goal/{name}", kind, queue_size=1, latch=True)
            for name, kind in (("image", Image), ("text", String))
        )
        with RemoteRobot(("127.0.0.1", 15757), patience=20) as robot:
            pixels = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)
            image.publish(message_of(pixels))
            until(lambda: moved(robot) and robot.goal is not None)
            assert isinstance(robot.goal, dict)
            np.testing.assert_array_equal(robot.goal["front"], pixels)
            image.publish(message_of(pixels[:32]))  # of another size: the goal stays
            text.publish(String(data="close the drawer"))
            until(lambda: moved(robot) and robot.goal == "close the drawer")
            assert rospy.ServiceProxy("/left/mpc/estop", Trigger)().success
            until(lambda: robot.health().state == "fault")
            assert robot.health().reason == "emergency stop"
            assert rospy.ServiceProxy("/left/mpc/estop", Trigger)().message == "the arm stops"
            reset = rospy.ServiceProxy("/left/mpc/reset", Trigger)
            until(lambda: reset().message == "ready")  # as soon as it rests
            until(lambda: state().data == "ready")  # it is looked at five times a second
        launch.send_signal(signal.SIGINT)
        said, _ = launch.communicate(timeout=30)
        assert launch.returncode == 0 and "has died" not in said
        assert "need 64x64 as of front" in said
    camera.unregister()
    relay.unregister()


def test_roslaunch_ends_where_a_parameter_is_wrong(rig: Rig, tmp_path: Path) -> None:
    config = tmp_path / "parameters.yaml"
    config.write_text("safety: {velocity: 2}")
    with launched("mpc.launch", f"config:={config}", "address:=127.0.0.1:0") as launch:
        said, _ = launch.communicate(timeout=120)
    assert "mpc_node: SafetyFilter.velocity: 2.0 is not within [0.001, 1]\n" in said
    assert "exit code 2" in said and "REQUIRED process [mpc" in said


@pytest.mark.parametrize(
    ("parameters", "line"),
    [
        ({"safety": {"speed": 1}}, "SafetyFilter has no key 'speed'"),
        ({"perid": 0.1}, "no key 'perid'; did you mean 'period'?"),
        ({"period": 0}, "mpc.period: 0.0 is not within"),
        ({"backend": {"mode": "torque"}}, "no Ros1Driver.mode named 'torque'"),
        ({"backend": {"joints": ["a", "b"]}}, "Ros1Driver.joints: found a, b; need a name of its"),
        ({"backend": {"dt": 0.01}}, "mpc.backend.dt: 0.01 s, but safety.dt is 0.02 s"),
        ({"address": "here"}, "HOST:PORT"),
        ({"robot": "pnada"}, "did you mean 'panda'"),
    ],
)
def test_wrong_parameters_are_errors_before_anything_moves(
    parameters: dict[str, Any], line: str
) -> None:
    with pytest.raises(LatentplanError, match=re.escape(line)):
        build({"address": "127.0.0.1:0"} | parameters)


@pytest.mark.parametrize("name", ["panda", "ur5e", "dry_run"])
def test_the_parameters_that_are_shipped_are_right(name: str) -> None:
    file = ROOT / "real_robot" / "ros1" / "latentplan_ros" / "config" / f"{name}.yaml"
    robot = name.replace("dry_run", "panda")
    build({"address": "127.0.0.1:0", "robot": robot} | yaml.safe_load(file.read_text()))


def test_bags_are_the_same_to_rosbag_and_to_rosbags(rig: Rig, tmp_path: Path) -> None:
    from rosbags.highlevel import AnyReader
    from rosbags.rosbag1 import Writer
    from rosbags.typesys import Stores, get_typestore

    topics = {"joint_states": JointState, "front/image_raw": Image}
    seen = {topic: rospy.wait_for_message(topic, kind, 10) for topic, kind in topics.items()}
    theirs, ours = tmp_path / "theirs.bag", tmp_path / "ours.bag"
    with rosbag.Bag(str(theirs), "w") as bag:
        for topic, message in seen.items():
            bag.write(topic, message, message.header.stamp)
    with AnyReader([theirs]) as reader, Writer(ours) as writer:
        for connection, stamp, raw in reader.messages():
            message, given = reader.deserialize(raw, connection.msgtype), seen[connection.topic]
            assert stamp == given.header.stamp.to_nsec()
            if connection.topic == "joint_states":
                np.testing.assert_array_equal(message.position, given.position)
            else:
                assert message.data.tobytes() == given.data and message.encoding == "rgb8"
            store = get_typestore(Stores.ROS1_NOETIC)
            same = writer.add_connection(connection.topic, connection.msgtype, typestore=store)
            writer.write(same, stamp, raw)
    with rosbag.Bag(str(ours)) as bag:
        again = {topic: (message, time) for topic, message, time in bag.read_messages()}
    for topic, message in seen.items():
        assert (raw_of(again[topic][0]), again[topic][1]) == (raw_of(message), message.header.stamp)


def test_the_death_of_the_master_stops_the_arm_though_topics_flow(rig: Rig) -> None:
    renew(rig)
    row = trial(rig, "master killed")
    check(row, LAST["master killed"].limit)
    assert f"the master http://127.0.0.1:{PORT} is gone" in row.reason
    _, joints = rig.record(time.monotonic() - 0.5)
    assert len(joints.rows) > 10  # joint states come all the time


WIDE = {"velocity": 0.3, "age": 1.5, "low": [-2, -2, -2], "high": [2, 2, 2]}
PATIENT = {"joints_age": 1.0, "image_age": 2.0, "overruns": 100}


def renew(rig: Rig, *settings: str) -> None:
    """Start the node and its planner again."""
    rig.start("node", [*rig.node_command(rig.port), *settings])
    rig.ready("node")
    node = rig.processes["node"]
    until(lambda: node.popen.poll() is not None or rig.health()["state"] != "disconnected")
    assert node.popen.poll() is None, node.errors
    rig.start_planner()


def refused(rig: Rig, *settings: str, **environment: str) -> str:
    """Return the one line with which another node for this arm ends."""
    command = [sys.executable, *rig.node_command(0), *settings]
    node = Process(command, {**ROS1.environment, **environment})
    assert node.popen.wait(30) == 2
    time.sleep(0.1)
    (line,) = node.errors
    return line


def moved(robot: RemoteRobot) -> bool:
    """Send an action, as a planner does all the time."""
    robot.observe()
    robot.send(TURN)
    return True


def raw_of(message: Any) -> bytes:
    """Return a message as it goes over the wire."""
    buffer = io.BytesIO()
    message.serialize(buffer)
    return buffer.getvalue()


def message_of(image: Any) -> Image:
    height, width, _ = image.shape
    data = image[..., ::-1].tobytes()
    return Image(height=height, width=width, encoding="bgr8", step=3 * width, data=data)


class launched:
    """A roslaunch of the package with this python, ended with the block."""

    def __init__(self, *words: str) -> None:
        paths = f"{ROOT / 'real_robot' / 'ros1'}:/usr/share"
        self.popen = subprocess.Popen(
            ["roslaunch", "latentplan_ros", *words, f"python:={sys.executable}"],
            cwd="/",
            env={**os.environ, **ROS1.environment, "ROS_PACKAGE_PATH": paths},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def __enter__(self) -> subprocess.Popen[str]:
        return self.popen

    def __exit__(self, *_: object) -> None:
        if self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(20)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()
