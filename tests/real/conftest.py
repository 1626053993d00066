"""Tests that need a ROS are collected where it is; with LATENTPLAN_REQUIRE_ROS=1 everywhere."""

import os
from importlib.util import find_spec

NEEDS = {"test_ros1.py": "rospy", "test_ros2.py": "rclpy"}
required = os.environ.get("LATENTPLAN_REQUIRE_ROS") == "1"
collect_ignore = [file for file, ros in NEEDS.items() if not required and find_spec(ros) is None]
