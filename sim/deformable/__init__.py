"""Rope and cloth: deformable objects on a table, moved by one gripper."""
