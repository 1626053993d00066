"""What stands around an arm, as clients of a rosbridge: `python rosbridge_client.py PORT ROLE`.

The role is `arm`, whose sensors have the fault that is written to stdin, `camera`, or `recorder`
with FILE after it.
"""

from __future__ import annotations

import base64
import json
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import roslibpy
from real.sensor_faults import SensorFaults

from latentplan.errors import RobotError
from latentplan.real_robot.backends.simulated_controller import JointStates, SimulatedController
from latentplan.real_robot.backends.topics import MODES
from latentplan.robots.description import load

COMMANDS = f"/{MODES['trajectory']}", "trajectory_msgs/msg/JointTrajectory"
JOINTS = "/joint_states", "sensor_msgs/msg/JointState"
IMAGES = "/front/image_raw", "sensor_msgs/msg/Image"
PANDA = load("panda")


def header(stamp: float) -> dict[str, Any]:
    return {"stamp": {"sec": int(stamp), "nanosec": int(stamp % 1 * 1e9)}, "frame_id": ""}


def be_arm(ros: roslibpy.Ros, leave: threading.Event) -> None:
    arm, faults = SimulatedController(PANDA), SensorFaults()
    topic = roslibpy.Topic(ros, *JOINTS)

    def go(message: Any) -> None:
        (point,) = message["points"]
        due = point["time_from_start"]["sec"] + 1e-9 * point["time_from_start"]["nanosec"]
        try:
            positions, velocities = point["positions"], point["velocities"]
            arm.follow(message["joint_names"], positions, velocities, due=due)
        except RobotError as e:
            print(e, file=sys.stderr, flush=True)

    def publish(states: JointStates) -> None:
        altered = faults(states)
        if altered is not None:
            values = {"name": altered.names, "position": altered.q, "velocity": altered.dq}
            topic.publish({"header": header(altered.stamp), **values, "effort": []})

    roslibpy.Topic(ros, *COMMANDS).subscribe(go)
    print("ready", flush=True)
    arm.run(publish, leave)


def be_camera(ros: roslibpy.Ros, leave: threading.Event) -> None:
    topic = roslibpy.Topic(ros, *IMAGES)
    pixels = np.arange(64 * 64 * 3, dtype=np.uint8)
    values = {"height": 64, "width": 64, "step": 192, "encoding": "rgb8", "is_bigendian": 0}
    print("ready", flush=True)
    while not leave.wait(1 / 30):
        data = base64.b64encode(pixels.tobytes()).decode()
        topic.publish({"header": header(time.time()), **values, "data": data})
        pixels = np.roll(pixels, 3)


def record(ros: roslibpy.Ros, leave: threading.Event) -> None:
    names = [joint.name for joint in PANDA.joints]
    with Path(sys.argv[3]).open("w") as file:

        def write(topic: str, q: Any, dq: Any) -> None:
            row = {"t": time.monotonic(), "topic": topic, "q": list(q), "dq": list(dq)}
            file.write(json.dumps(row) + "\n")
            file.flush()

        def hear(message: Any) -> None:
            if set(names) <= set(message["name"]):
                at = [message["name"].index(name) for name in names]
                q, dq = ([message[key][i] for i in at] for key in ("position", "velocity"))
                write("joints", [np.nan if number is None else number for number in q], dq)

        roslibpy.Topic(ros, *COMMANDS).subscribe(
            lambda m: write("command", m["points"][0]["positions"], m["points"][0]["velocities"])
        )
        roslibpy.Topic(ros, *JOINTS).subscribe(hear)
        print("ready", flush=True)
        leave.wait()


def main() -> None:
    leave = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: leave.set())
    ros = roslibpy.Ros("127.0.0.1", int(sys.argv[1]))
    ros.factory.on_ready(lambda proto: proto.transport.setTcpNoDelay(True))
    ros.run(timeout=20)
    {"arm": be_arm, "camera": be_camera, "recorder": record}[sys.argv[2]](ros, leave)


if __name__ == "__main__":
    main()
