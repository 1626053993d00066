"""ROS 1: an arm and a camera that stand in for real ones, and a package for catkin."""
