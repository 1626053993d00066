"""An empty package for colcon; the nodes are in latentplan.real_robot.ros2."""
