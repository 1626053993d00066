"""An arm behind rosbridge: a hub that speaks its protocol, and an arm and a camera at the hub."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import roslibpy
from real.faults import FAULTS, trial
from real.harness import Rig
from real.process import HERE
from real.setups import of

from latentplan.errors import RobotError
from latentplan.real_robot.backends.rosbridge import RosbridgeDriver
from latentplan.real_robot.robot import Setpoint
from latentplan.robots.description import load
from latentplan.sim.rendering.cameras import Camera

SLACK = 3.0  # a machine that runs tests may be as much slower as that
PANDA = load("panda")
COMMANDS = "/joint_trajectory_controller/joint_trajectory"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with Rig(of("rosbridge"), tmp_path_factory.mktemp("rosbridge"), patience=2.0) as rig:
        yield rig


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["camera hangs", "joint not finite", "nan action", "emergency stop"]
)
def test_a_fault_stops_the_arm(rig: Rig, name: str) -> None:
    row, limit = trial(rig, name), FAULTS[name].limit
    assert row.velocity < 1.01 and row.acceleration < 1.01 and row.non_finite == 0, row
    assert limit is not None and row.reaction_ms is not None and row.reaction_ms < SLACK * limit, (
        row
    )
    assert row.held, row


@pytest.mark.slow
def test_a_server_that_is_killed_stops_the_arm_and_gets_nothing_later(rig: Rig) -> None:
    rig.cruise()
    begin = rig.processes["before0"].signal(signal.SIGKILL)
    while rig.health()["state"] == "armed":
        assert time.monotonic() - begin < SLACK * 0.2
        time.sleep(0.005)
    assert "the connection is lost; open it again" in rig.health()["reason"]
    rig.start("before0", rig.setup.before[0])
    rig.ready("before0")
    rig.start("recorder", rig.setup.recorder or ())
    rig.ready("recorder")
    time.sleep(1.5)  # who reconnects does so after a second
    assert not len(rig.record(0.0)[0].rows)
    assert "connection is lost" in rig.ask("reset")["error"] + rig.health()["reason"]


@pytest.fixture
def hub() -> Iterator[int]:
    yield from serve()


@pytest.fixture
def hub_without_rosapi() -> Iterator[int]:
    yield from serve("alone")


def serve(*words: str, port: int = 0) -> Iterator[int]:
    port = port or free_port()
    command = [sys.executable, str(HERE / "rosbridge_hub.py"), str(port), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield port
        process.terminate()


def driver(port: int, **settings: Any) -> RosbridgeDriver:
    given = {"port": port, "latency": 0.5, "patience": 0.2} | settings
    camera = Camera("front", (1.1, 0.0, 0.7))
    return RosbridgeDriver(PANDA, RosbridgeDriver.Config(**given), cameras=[camera])


def test_a_missing_server_and_another_publisher_are_errors(
    hub: int, hub_without_rosapi: int
) -> None:
    with pytest.raises(RobotError, match=r"rosbridge 127.0.0.1:\d+: no server answers within 0.5"):
        driver(free_port()).open()
    with pytest.raises(RobotError, match="rosapi does not list the publishers of"):
        driver(hub_without_rosapi).open()
    alone = driver(hub_without_rosapi, exclusive=False)
    alone.open()
    alone.close()
    with pytest.raises(RobotError, match=f"no subscriber of {COMMANDS} for 0.2 s"):
        driver(hub, latency=20).open()
    ros = roslibpy.Ros("127.0.0.1", hub)
    ros.run(timeout=20)
    roslibpy.Topic(ros, COMMANDS, "trajectory_msgs/JointTrajectory").advertise()
    with pytest.raises(RobotError, match=f"publishes {COMMANDS}, too"):
        driver(hub, latency=20).open()
    ros.close()


def test_a_server_that_starts_later_is_waited_for_and_one_that_left_is_not() -> None:
    port = free_port()
    arm = driver(port, latency=20, exclusive=False)
    with ThreadPoolExecutor() as pool:
        opening = pool.submit(arm.open)
        time.sleep(0.3)  # at least one attempt found nobody
        assert not opening.done()
        for _ in serve(port=port):
            opening.result(20)
    with pytest.raises(RobotError, match="the connection is lost; open it again"):
        end = time.monotonic() + 20
        while time.monotonic() < end:
            arm.reading()
            time.sleep(0.005)
    for _ in serve(port=port):
        time.sleep(1)  # twice the time between attempts
        with pytest.raises(RobotError, match="not connected"):
            arm.write(Setpoint(PANDA.column("home"), np.zeros(7), np.zeros(7), 0.04))
    arm.close()


@pytest.mark.parametrize("mode", ["trajectory", "positions", "twist"])
@pytest.mark.parametrize("ros", [1, 2])
def test_setpoints_go_out_in_the_words_of_each_ros(hub: int, mode: str, ros: int) -> None:
    names = {"trajectory": COMMANDS, "positions": "/forward_position_controller/commands"}
    topic = names.get(mode, "/servo_node/delta_twist_cmds")
    listener = roslibpy.Ros("127.0.0.1", hub)
    listener.run(timeout=20)
    heard: list[Any] = []
    roslibpy.Topic(listener, topic, "any/any").subscribe(heard.append)
    arm = driver(hub, latency=20, patience=20, mode=mode, ros=ros, end_velocity="setpoint")
    arm.open()
    q, dq = PANDA.column("home"), np.eye(7)[0] * 0.5
    arm.write(Setpoint(q, dq, 0 * q, 0.04))
    end = time.monotonic() + 20
    while not heard and time.monotonic() < end:
        time.sleep(0.01)
    (message,) = heard
    seconds, rest = ("secs", "nsecs") if ros == 1 else ("sec", "nanosec")
    if mode == "trajectory":
        (point,) = message["points"]
        assert message["joint_names"] == [joint.name for joint in PANDA.joints]
        assert (point["positions"], point["velocities"]) == (q.tolist(), dq.tolist())
        assert point["time_from_start"] == {seconds: 0, rest: 40_000_000}
    elif mode == "positions":
        assert message["data"] == q.tolist()
    else:
        assert message["twist"]["angular"]["z"] == pytest.approx(0.5, abs=1e-6)
        stamp = message["header"]["stamp"]
        assert stamp[seconds] + 1e-9 * stamp[rest] == pytest.approx(time.time(), abs=30)
    arm.close()
    with pytest.raises(RobotError, match="not connected"):
        arm.write(Setpoint(q, dq, 0 * q, 0.04))
    listener.close()


STAMP = {"stamp": {"sec": 5, "nanosec": 500_000_000}}
NAMES = [joint.name for joint in PANDA.joints]
SOUND = {"header": STAMP, "name": NAMES, "position": [0.1] * 7, "velocity": [0] * 7}
PICTURE = {"header": STAMP, "height": 64, "width": 64, "step": 192, "encoding": "rgb8"}


@pytest.mark.parametrize(
    ("topic", "message", "line"),
    [
        ("/joint_states", SOUND | {"position": [0.1] * 6}, "found 6 values for the names"),
        ("/joint_states", SOUND | {"velocity": [0] * 6}, "found 6 values for the names"),
        ("/joint_states", SOUND | {"name": None}, "joint_states: no sensor_msgs/JointState"),
        ("/joint_states", {"data": "x"}, "joint_states: no sensor_msgs/JointState"),
        ("/joint_states", SOUND | {"header": {"stamp": None}}, "no sensor_msgs/JointState"),
        ("/joint_states", SOUND | {"position": ["a"] * 7}, "no sensor_msgs/JointState"),
        ("/front/image_raw", PICTURE | {"data": "####", "is_bigendian": 0}, "no sensor_msgs/Image"),
        ("/front/image_raw", PICTURE | {"data": "AAAA", "is_bigendian": 0}, "3 bytes in rows of"),
        ("/front/image_raw", SOUND, "front/image_raw: no sensor_msgs/Image"),
    ],
)
def test_invalid_messages_are_errors_and_harm_nobody(
    shared: tuple[RosbridgeDriver, roslibpy.Ros], topic: str, message: Any, line: str
) -> None:
    arm, ros = shared
    roslibpy.Topic(ros, topic, "any/any").publish(message)
    with pytest.raises(RobotError, match=line):
        end = time.monotonic() + 20
        while time.monotonic() < end:
            arm.reading()
            time.sleep(0.005)
    roslibpy.Topic(ros, "/joint_states", "any/any").publish(SOUND)
    while (reading := arm.reading()) is None:
        time.sleep(0.005)
    assert reading.stamp == 5.5 and reading.q.tolist() == [0.1] * 7


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[RosbridgeDriver, roslibpy.Ros]]:
    for port in serve():
        arm = driver(port, latency=20, exclusive=False)
        arm.open()
        ros = roslibpy.Ros("127.0.0.1", port)
        ros.run(timeout=20)
        yield arm, ros
        arm.close()
        ros.close()


def test_the_server_complains_and_small_messages_do_not_wait(
    shared: tuple[RosbridgeDriver, roslibpy.Ros],
) -> None:
    arm, _ = shared
    roslibpy.Topic(arm._ros, "/x", "nonsense").advertise()
    with pytest.raises(RobotError, match="rosbridge: the server reports: no type nonsense"):
        end = time.monotonic() + 20
        while time.monotonic() < end:
            arm.reading()
            time.sleep(0.005)
    assert arm._ros.factory._proto.transport.getTcpNoDelay()


def test_null_is_what_nan_was(shared: tuple[RosbridgeDriver, roslibpy.Ros]) -> None:
    arm, ros = shared
    later = {"stamp": {"sec": 6, "nanosec": 0}}  # the same stamp again would count as silence
    values = SOUND | {"header": later, "position": [None, *[0.1] * 6]}
    roslibpy.Topic(ros, "/joint_states", "any/any").publish(values)
    end = time.monotonic() + 20
    while (reading := arm.reading()) is None or np.isfinite(reading.q).all():
        assert time.monotonic() < end
        time.sleep(0.005)
    assert np.isnan(reading.q[0]) and np.isfinite(reading.q[1:]).all()
