"""The simulated arm of ROS 1, whose sensors fail as they are told to on stdin."""

from real.words import Faults

from latentplan.real_robot.ros1.simulated_arm import serve

if __name__ == "__main__":
    serve("panda", alter=Faults())
