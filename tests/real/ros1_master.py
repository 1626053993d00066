"""A ROS 1 master: `python tests/real/ros1_master.py PORT`."""

import sys

import rosmaster

if __name__ == "__main__":
    rosmaster.rosmaster_main(["rosmaster", "--core", "-p", sys.argv[1]])
