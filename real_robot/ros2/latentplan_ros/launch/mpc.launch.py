"""Start the control loop of an arm: `ros2 launch latentplan_ros mpc.launch.py robot:=ur5e ...`.

Planners connect to `address`. When the node ends, for any reason, the launch ends.
"""

from pathlib import Path

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, EmitEvent, ExecuteProcess, OpaqueFunction
from launch.events import Shutdown
from launch.substitutions import LaunchConfiguration

from latentplan.real_robot.ros2 import launching

CONFIG = Path(__file__).resolve().parents[1] / "config"
ARGUMENTS = {
    "robot": ("panda", "a name, or the path of a file that describes an arm"),
    "config": ("", "a file of parameters; empty: the shipped file of that robot"),
    "address": ("127.0.0.1:5757", "where planners connect"),
    "namespace": ("", "of the arm"),
    "joint_states": ("joint_states", "topic"),
    "command": ("", "topic of setpoints; empty: the parameter's"),
    "python": ("python3", "interpreter that can import latentplan and rclpy"),
    "autostart": ("true", "configure and activate at once"),
}


def start(context):
    """Return the node's process, with the arguments filled in."""
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    shipped = CONFIG / f"{given['robot']}.yaml"
    parameters = {name: given[name] for name in ("robot", "address", "autostart")}
    if given["command"]:
        parameters["backend.command"] = given["command"]
    command = launching.argv(
        config=given["config"] or (str(shipped) if shipped.exists() else ""),
        namespace=given["namespace"],
        parameters=parameters,
        remappings=[("joint_states", given["joint_states"])],
        python=given["python"],
    )
    ended = EmitEvent(event=Shutdown(reason="the node has ended"))
    return [ExecuteProcess(cmd=command, output="screen", on_exit=[ended], sigterm_timeout="15")]


def generate_launch_description():
    """Return the description that `ros2 launch` runs."""
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=about)
        for name, (default, about) in ARGUMENTS.items()
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=start)])
