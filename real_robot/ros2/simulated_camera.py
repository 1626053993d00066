"""A camera that renders the simulated arm, as a ROS 2 node, for dry runs.

`python -m latentplan.real_robot.ros2.simulated_camera`: it publishes sensor_msgs/Image on
`front/image_raw`, rendered with the joints of `joint_states`.
"""

from __future__ import annotations

import argparse
import array
import signal
import threading

from latentplan.real_robot.backends.ros2 import graph
from latentplan.real_robot.backends.simulated_controller import (
    SimulatedCamera,
    camera_of,
    camera_options,
)
from latentplan.real_robot.ros2.simulated_arm import stamp
from latentplan.robots import description
from latentplan.sim.rendering.cameras import Camera
from latentplan.types import Array


def serve(name: str, camera: Camera, *, namespace: str = "", fps: float = 30.0) -> None:
    """Run a camera that renders the arm of that name, until SIGTERM or SIGINT."""
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import Image, JointState

    rendering = SimulatedCamera(description.load(name), camera)
    leave = threading.Event()
    for wanted in (signal.SIGTERM, signal.SIGINT):
        signal.signal(wanted, lambda *_: leave.set())
    with graph("simulated_camera", namespace) as node:
        node.create_subscription(
            JointState, "joint_states", lambda m: rendering.see(m.name, m.position), 10
        )
        topic = f"{camera.name}/image_raw"
        publisher = node.create_publisher(Image, topic, qos_profile_sensor_data)

        def publish(time: float, pixels: Array) -> None:
            height, width, _ = pixels.shape
            image = Image(height=height, width=width, encoding="rgb8", step=3 * width)
            image.data = array.array("B", pixels.tobytes())  # a list would take 100 times as long
            stamp(image, time)
            publisher.publish(image)

        print("ready", flush=True)
        rendering.run(publish, leave, fps=fps)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    camera_options(parser)
    parser.add_argument("--namespace", default="", help="of its topics")
    given = parser.parse_args()
    serve(given.robot, camera_of(given), namespace=given.namespace, fps=given.fps)


if __name__ == "__main__":
    main()
