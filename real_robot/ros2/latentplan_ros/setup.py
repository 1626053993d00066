"""An ament_python package of entry points; its code is in latentplan, which pip installs."""

from glob import glob

from setuptools import setup  # type: ignore[import-untyped]

setup(
    name="latentplan_ros",
    version="0.1.0",
    packages=["latentplan_ros"],
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/latentplan_ros"]),
        ("share/latentplan_ros", ["package.xml"]),
        ("share/latentplan_ros/launch", glob("launch/*.py")),
        ("share/latentplan_ros/config", glob("config/*.yaml")),
    ],
    license="MIT",
    entry_points={
        "console_scripts": [
            "mpc_node = latentplan.real_robot.ros2.mpc_node:main",
            "simulated_arm = latentplan.real_robot.ros2.simulated_arm:main",
            "simulated_camera = latentplan.real_robot.ros2.simulated_camera:main",
        ]
    },
)
