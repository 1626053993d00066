"""The processes around an arm, for each backend."""

import socket
import tempfile
from pathlib import Path

from real.harness import HERE, Setup

SIM = Setup("sim", settings=("backend.real_time=true",))
ROS2 = Setup(
    "ros2",
    arm=(str(HERE / "ros2_arm.py"),),
    camera=("-m", "latentplan.real_robot.ros2.simulated_camera"),
    recorder=(str(HERE / "ros2_recorder.py"), "{file}"),
    settings=("backend.patience=20",),
)
PORT = 21311  # of the ROS 1 master; nothing else is in the network namespace
LOGS = Path(tempfile.gettempdir()) / "latentplan-ros1"
ROS1 = Setup(
    "ros1",
    before=((str(HERE / "ros1_master.py"), str(PORT)),),
    arm=(str(HERE / "ros1_arm.py"),),
    camera=("-m", "latentplan.real_robot.ros1.simulated_camera"),
    recorder=(str(HERE / "ros1_recorder.py"), "{file}"),
    settings=("backend.patience=20", "backend.latency=20"),
    environment={
        "ROS_MASTER_URI": f"http://127.0.0.1:{PORT}",
        "ROS_IP": "127.0.0.1",
        "ROS_HOME": str(LOGS),
        "ROS_LOG_DIR": str(LOGS / "log"),
    },
)


def rosbridge(port: int) -> Setup:
    """Return the processes around a rosbridge at that port of this machine."""
    client = str(HERE / "rosbridge_client.py")
    return Setup(
        "rosbridge",
        before=((str(HERE / "rosbridge_hub.py"), str(port)),),
        arm=(client, str(port), "arm"),
        camera=(client, str(port), "camera"),
        recorder=(client, str(port), "recorder", "{file}"),
        settings=(f"backend.port={port}", "backend.patience=20", "backend.latency=20"),
    )


def of(backend: str) -> Setup:
    """Return the setup of a backend by its name."""
    if backend != "rosbridge":
        return {"sim": SIM, "ros1": ROS1, "ros2": ROS2}[backend]
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return rosbridge(int(s.getsockname()[1]))
