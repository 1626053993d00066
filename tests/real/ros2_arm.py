"""The simulated arm of ROS 2, whose sensors have the fault that is written to stdin."""

from real.sensor_faults import SensorFaults

from latentplan.real_robot.ros2.simulated_arm import serve

if __name__ == "__main__":
    serve("panda", alter=SensorFaults())
