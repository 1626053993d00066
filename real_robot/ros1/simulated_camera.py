"""A camera that renders the simulated arm, as a ROS 1 node, for dry runs.

`python -m latentplan.real_robot.ros1.simulated_camera`: it publishes sensor_msgs/Image on
`front/image_raw`, rendered with the joints of `joint_states`.
"""

from __future__ import annotations

import argparse

from latentplan.real_robot.backends.simulated_controller import (
    SimulatedCamera,
    camera_of,
    camera_options,
)
from latentplan.real_robot.ros1.simulated_arm import leaving
from latentplan.robots import description
from latentplan.sim.rendering.cameras import Camera
from latentplan.types import Array


def serve(name: str, camera: Camera, *, fps: float = 30.0) -> None:
    """Run a camera that renders the arm of that name, until SIGTERM or SIGINT."""
    import rospy
    from sensor_msgs.msg import Image, JointState

    rendering = SimulatedCamera(description.load(name), camera)
    leave = leaving()
    rospy.init_node("simulated_camera", disable_signals=True)
    publisher = rospy.Publisher(f"{camera.name}/image_raw", Image, queue_size=2, tcp_nodelay=True)

    def publish(time: float, pixels: Array) -> None:
        height, width, _ = pixels.shape
        image = Image(height=height, width=width, encoding="rgb8", step=3 * width)
        image.data = pixels.tobytes()
        image.header.stamp = rospy.Time.from_sec(time)
        publisher.publish(image)

    rospy.Subscriber(
        "joint_states", JointState, lambda m: rendering.see(m.name, m.position), queue_size=1
    )
    print("ready", flush=True)
    rendering.run(publish, leave, fps=fps)
    rospy.signal_shutdown("SIGTERM or SIGINT")


def main() -> None:
    """Read the command line; remappings (`from:=to`, `__name:=x`) are rospy's."""
    import rospy

    parser = argparse.ArgumentParser(description=__doc__)
    camera_options(parser)
    given = parser.parse_args(rospy.myargv()[1:])
    serve(given.robot, camera_of(given), fps=given.fps)


if __name__ == "__main__":
    main()
