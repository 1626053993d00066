"""Nothing but a name for colcon: the nodes are in latentplan.real_robot.ros2."""
