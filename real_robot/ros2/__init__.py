"""ROS 2: the node of a control loop, a simulated arm and camera, and a package for colcon."""
