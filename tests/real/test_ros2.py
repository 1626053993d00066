"""An arm behind ROS 2, for real: topics, a lifecycle node, a bag, all on the loopback alone.

`make test-ros2` runs it in a network namespace. One rig serves most tests, in their order; the
one that kills the node is the last, since the graph remembers who was killed for 20 s.
"""

from __future__ import annotations

import array
import importlib.util
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import TwistStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from nav_msgs.msg import Path as PathMessage
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.qos import qos_profile_sensor_data
from rclpy.serialization import deserialize_message
from real import scenarios
from real.faults import FAULTS, trial
from real.harness import SPEED, Rig
from real.process import Process
from real.scenarios import ROOT, SLACK, until, with_camera
from real.setups import ROS2
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float64MultiArray, String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from latentplan.errors import ConfigError, RobotError
from latentplan.real_robot.backends import joint_readings
from latentplan.real_robot.backends.ros2 import Ros2Driver, graph
from latentplan.real_robot.backends.topics import MODES
from latentplan.real_robot.link.remote import RemoteRobot
from latentplan.real_robot.ros2 import launching
from latentplan.real_robot.ros2.parameters import RANGES, settings
from latentplan.robots.chain import Chain
from latentplan.robots.description import load

pytestmark = pytest.mark.ros2
PACKAGE = ROOT / "real_robot" / "ros2" / "latentplan_ros"


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with Rig(ROS2, tmp_path_factory.mktemp("ros2"), patience=2.0) as rig:
        yield rig


@pytest.fixture(scope="module")
def tester(rig: Rig) -> Iterator[Any]:
    """A node of the tests' own in the graph."""
    with graph("tester") as node:
        yield node


@pytest.mark.parametrize("name", [name for name in FAULTS if "ros2" in FAULTS[name].backends])
def test_a_fault_stops_the_arm_and_only_a_fault(rig: Rig, name: str) -> None:
    row, limit = trial(rig, name), FAULTS[name].limit
    assert row.velocity < 1.01 and row.acceleration < 1.01 and row.non_finite == 0, row
    if limit is None:
        assert row.reaction_ms is None and not row.reason, row
        return
    assert row.reaction_ms is not None and row.rest_ms is not None, row
    assert row.reaction_ms < SLACK * limit and row.rest_ms < SLACK * (limit + 400), row
    assert row.held, row


def test_two_drivers_that_share_the_joints_and_send_no_velocities(
    tester: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each publishes half of the joints, with a wheel, and neither knows velocities."""
    monkeypatch.setattr(joint_readings, "PATIENCE", 60)  # of a slow machine's discovery
    arm = load("panda")
    names = [joint.name for joint in arm.joints]
    config = Ros2Driver.Config(node="halves", namespace="halves", exclusive=False)
    driver = Ros2Driver(arm, config)
    drivers = [tester.create_publisher(JointState, "/halves/joint_states", 10) for _ in range(2)]
    commands = tester.create_subscription(
        JointTrajectory, f"/halves/{MODES['trajectory']}", lambda message: None, 1
    )

    def publish(halves: Any, t: float) -> Any:
        for publisher, own in halves:
            message = JointState(name=[*own, "wheel"], position=[0.1 * t] * len(own) + [1e6 * t])
            message.header.stamp.sec = int(t)
            message.header.stamp.nanosec = int(t % 1 * 1e9)
            publisher.publish(message)
            time.sleep(0.005)
        return driver.reading()

    both = list(zip(drivers, (names[:3], names[3:]), strict=True))
    driver.open()
    try:
        # No other messages than these, so that a slow machine does not count.
        assert publish(both, 0.0) is None
        begin = time.monotonic()
        until(lambda: publish(both, time.monotonic() - begin) is not None)
        for _ in range(40):
            reading = publish(both, time.monotonic() - begin)
        np.testing.assert_allclose(reading.dq, 0.1, rtol=0.2)
        for _ in range(40):
            stale = publish(both[:1], time.monotonic() - begin)
        assert time.monotonic() - stale.received > 0.15
    finally:
        driver.close()
        tester.destroy_subscription(commands)
        for publisher in drivers:
            tester.destroy_publisher(publisher)


def test_reset_is_refused_while_a_sensor_is_silent_or_the_arm_moves(rig: Rig) -> None:
    scenarios.reset_is_refused(rig, silence=1.2)


def test_it_begins_where_the_arm_is_measured_not_where_it_was_sent(rig: Rig) -> None:
    scenarios.begins_where_measured(rig)


def test_another_commander_stops_the_arm_and_keeps_others_from_it(
    rig: Rig, tester: Any
) -> None:
    rig.go()
    others = f"publishes {MODES['trajectory']}, too"  # a name may not be known at once
    second = Process([sys.executable, *rig.node_command(0)], {})
    # On a busy machine the other is found only after it began: then both stand. Either may be
    # the first to find the other, and the second is refused while the first stands, too.
    until(lambda: second.popen.poll() is not None or rig.health()["state"] == "fault")
    if rig.health()["state"] == "fault":
        assert others in rig.health()["reason"]
    try:
        second.popen.wait(5)
    except subprocess.TimeoutExpired:
        second.signal(signal.SIGTERM)
    if second.popen.wait(30) == 2:
        until(lambda: any(others in line for line in second.errors))
    else:
        assert second.popen.returncode == 0 and rig.health()["state"] == "fault"
    time.sleep(1.0)
    rig.go()
    rival = tester.create_publisher(JointTrajectory, MODES["trajectory"], 1)
    until(lambda: rig.health()["state"] == "fault")
    assert others in rig.health()["reason"]
    tester.destroy_publisher(rival)
    time.sleep(0.5)
    rig.go()


def test_a_node_that_is_terminated_lets_the_arm_rest_first(rig: Rig) -> None:
    rig.cruise()
    node = rig.processes["node"]
    node.signal(signal.SIGTERM)
    assert node.popen.wait(SLACK * 2) == 0
    time.sleep(0.2)
    scenarios.rested(rig)
    renew(rig)


@pytest.mark.parametrize("mode", ["positions", "twist"])
def test_setpoints_go_out_as_they_are_asked_for(rig: Rig, tester: Any, mode: str) -> None:
    heard: list[Any] = []
    kind = TwistStamped if mode == "twist" else Float64MultiArray
    listener = tester.create_subscription(kind, MODES[mode], heard.append, 100)
    renew(rig, f"backend.mode={mode}")
    rig.go()
    if mode == "positions":
        until(lambda: abs(heard[-1].data[0] - heard[0].data[0]) > 0.1 if heard else False)
        _, joints = rig.record(rig.begun)
        assert np.abs(joints.dq[:, 0]).max() > 0.5 * SPEED
    else:  # nothing follows a twist here, so the reference runs ahead until that is a fault
        until(lambda: rig.health()["state"] == "fault")
        assert "the reference is" in rig.health()["reason"]
        fastest = max(heard, key=lambda m: abs(m.twist.angular.z))
        assert fastest.header.frame_id == "base_link" and fastest.header.stamp.sec > 0
        turn, linear = fastest.twist.angular, fastest.twist.linear
        arm = load("panda")
        (ee,) = Chain(arm).ee(np.array([arm.column("home")]))
        radius = np.hypot(*(ee - arm.position)[:2])
        assert abs(turn.x) + abs(turn.y) < 1e-3 < abs(turn.z)
        assert np.hypot(linear.x, linear.y) == pytest.approx(radius * abs(turn.z), rel=0.02)
    tester.destroy_subscription(listener)
    renew(rig)


def test_what_is_missing_is_an_error_of_one_line(rig: Rig) -> None:
    rig.processes.pop("node").end()
    assert "no subscriber of nowhere for 0.5 s" in refused(
        rig, "backend.command=nowhere", "backend.patience=0.5"
    )
    assert "Topics" not in refused(rig, "backend.mode=dance")
    renew(rig)


def test_a_bag_of_the_live_topics_holds_the_very_bytes(tester: Any, tmp_path: Path) -> None:
    from rosbags.rosbag2 import Reader, StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore

    raw: dict[str, list[bytes]] = {"/joint_states": [], "/front/image_raw": []}
    types = {"/joint_states": JointState, "/front/image_raw": Image}
    listeners = [
        tester.create_subscription(types[t], t, heard.append, qos_profile_sensor_data, raw=True)
        for t, heard in raw.items()
    ]
    until(lambda: all(len(heard) >= 10 for heard in raw.values()))
    for listener in listeners:
        tester.destroy_subscription(listener)
    store = get_typestore(Stores.ROS2_JAZZY)
    kinds = {"/joint_states": "JointState", "/front/image_raw": "Image"}
    bag = tmp_path / "bag"
    with Writer(bag, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        for topic, messages in raw.items():
            kind = f"sensor_msgs/msg/{kinds[topic]}"
            connection = writer.add_connection(topic, kind, typestore=store)
            for i, message in enumerate(messages):
                writer.write(connection, i, bytes(message))
    with Reader(bag) as reader:
        read: dict[str, list[bytes]] = {topic: [] for topic in raw}
        for connection, _, data in reader.messages():
            read[connection.topic].append(bytes(data))
            # Written by one library and read by the other; padding may hold anything.
            ours = store.deserialize_cdr(data, connection.msgtype)
            theirs = deserialize_message(bytes(data), types[connection.topic])
            written = bytes(store.serialize_cdr(ours, connection.msgtype))
            assert deserialize_message(written, types[connection.topic]) == theirs
    assert read == {topic: [bytes(m) for m in messages] for topic, messages in raw.items()}


def test_the_lifecycle_node_is_configured_activated_stopped_and_given_goals(
    rig: Rig, tester: Any, tmp_path: Path
) -> None:
    for name in ("node", "planner"):
        rig.processes.pop(name).end()
    file = tmp_path / "panda.yaml"
    file.write_text(yaml.safe_dump(with_camera()))
    given = {
        "robot": str(file),
        "address": f"127.0.0.1:{rig.port}",
        "backend.joints": "[joint1, joint2, joint3, joint4, joint5, joint6, joint7]",
        "backend.images": "[/front/image_raw]",
        "backend.patience": "20.0",
        "safety.velocity": "0.3",
        "supervisor.joints_age": "1.0",
        "supervisor.image_age": "2.0",
        "supervisor.overruns": "100",
    }
    topics = [("joint_states", "/joint_states"), (MODES["trajectory"], f"/{MODES['trajectory']}")]
    command = launching.argv(
        config=str(PACKAGE / "config" / "panda.yaml"),
        namespace="left",
        parameters=given,
        remappings=topics,
    )
    mpc = Process(command, {})
    heard: dict[str, list[Any]] = {"plan": [], "diagnostics": []}
    tester.create_subscription(PathMessage, "/left/mpc/plan", heard["plan"].append, 1)
    tester.create_subscription(DiagnosticArray, "/diagnostics", heard["diagnostics"].append, 10)
    text = tester.create_publisher(String, "/left/mpc/goal/text", 1)
    image = tester.create_publisher(Image, "/left/mpc/goal/image", 1)
    try:
        assert not ask(tester, Trigger, "estop").success  # nothing moves yet
        assert change(tester, Transition.TRANSITION_CONFIGURE)
        assert "out of range" in put(tester, "safety.velocity", 2.0)
        assert "SafetyFilter.age" in put(tester, "safety.age", 0.01)
        assert put(tester, "safety.velocity", 0.25) == ""
        assert change(tester, Transition.TRANSITION_ACTIVATE)
        assert "deactivate it first" in put(tester, "safety.velocity", 0.2)
        with RemoteRobot(rig.address, patience=20) as robot:
            assert robot.spec.velocity[0] == pytest.approx(0.25 * 2.175)
            text.publish(String(data="close the drawer"))
            until(lambda: moved(robot) and robot.goal == "close the drawer")
            pixels = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)
            data = array.array("B", pixels[..., ::-1].tobytes())
            image.publish(Image(height=64, width=64, encoding="bgr8", step=192, data=data))
            until(lambda: moved(robot) and isinstance(robot.goal, dict))
            assert isinstance(robot.goal, dict)
            np.testing.assert_array_equal(robot.goal["front"], pixels)
            robot.preview(np.array([[0.1, 0.2, 0.3], [0.1, 0.2, 0.4]]))
            until(lambda: moved(robot) and heard["plan"])
            assert heard["plan"][-1].poses[1].pose.position.z == 0.4
            assert ask(tester, Trigger, "estop").success
            until(lambda: robot.health().state == "fault")
            assert robot.health().reason == "emergency stop"
            until(lambda: heard["diagnostics"][-1].status[0].message == "fault; emergency stop")
            until(lambda: ask(tester, Trigger, "reset").message == "ready")  # as soon as it rests
        assert change(tester, Transition.TRANSITION_DEACTIVATE)
        with pytest.raises(RobotError, match="does not answer"):
            RemoteRobot(rig.address).__enter__()
    finally:
        mpc.popen.terminate()
        assert mpc.popen.wait(20) == 0, "".join(mpc.errors)
    renew(rig)


@pytest.mark.parametrize("name", RANGES)
def test_ranges_of_parameters_are_those_of_their_classes(name: str) -> None:
    least, most = RANGES[name]
    for end, beyond in ((least, least - 1e-4), (most, most + 1e-4)):
        with pytest.raises(ConfigError, match=name.rpartition(".")[2]):
            settings({name: beyond})
        if "age" not in name:
            settings({name: end})


def test_the_launch_file_runs_that_command() -> None:
    pytest.importorskip("launch_ros")
    from launch import LaunchContext
    from launch.actions import ExecuteProcess

    path = PACKAGE / "launch" / "mpc.launch.py"
    spec = importlib.util.spec_from_file_location("mpc_launch", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    context = LaunchContext()
    context.launch_configurations.update({k: v for k, (v, _) in module.ARGUMENTS.items()})
    (process,) = module.start(context)
    assert isinstance(process, ExecuteProcess)
    assert "latentplan.real_robot.ros2.mpc_node" in str(process.cmd)


def test_a_node_that_is_killed_leaves_the_arm_where_it_was_sent(rig: Rig) -> None:
    scenarios.killed(rig, within=0.1)


def renew(rig: Rig, *settings: str) -> None:
    """Start the node and its planner again."""
    rig.start("node", [*rig.node_command(rig.port), *settings])
    rig.ready("node")
    rig.start_planner()


def change(tester: Any, transition: int) -> bool:
    """Ask the lifecycle node for a transition; return whether it was made."""
    request = ChangeState.Request(transition=Transition(id=transition))
    return bool(ask(tester, ChangeState, "change_state", request).success)


def put(tester: Any, name: str, value: float) -> str:
    """Set a parameter; return why that was refused, empty where it was not."""
    number = ParameterValue(type=ParameterType.PARAMETER_DOUBLE, double_value=value)
    request = SetParameters.Request(parameters=[Parameter(name=name, value=number)])
    (result,) = ask(tester, SetParameters, "set_parameters", request).results
    assert result.successful == (not result.reason)
    return str(result.reason)


def ask(tester: Any, kind: Any, name: str, request: Any = None) -> Any:
    """Return what a service of the lifecycle node answers."""
    client = tester.create_client(kind, f"/left/mpc/{name}")
    assert client.wait_for_service(30)
    answer = client.call_async(request or kind.Request())
    until(answer.done, within=40)
    tester.destroy_client(client)
    return answer.result()


def moved(robot: RemoteRobot) -> bool:
    """Send an action, as a planner does all the time."""
    robot.observe()
    robot.send(np.append([0.2, 0, 0, 0, 0, 0, 0], 0.5))
    return True


def refused(rig: Rig, *settings: str) -> str:
    """Return the one line with which another node for this arm ends."""
    node = Process([sys.executable, *rig.node_command(0), *settings], {})
    assert node.popen.wait(30) == 2
    time.sleep(0.1)
    return node.errors[-1]
