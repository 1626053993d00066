"""ROS 1: the node of a control loop, a simulated arm and camera, and a package for catkin."""
