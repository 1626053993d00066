"""The control loop: node, supervisor, safety filter, local robot."""
