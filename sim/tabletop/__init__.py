"""A desk with a drawer, a slider, a switch with a light, and blocks: tasks in PyBullet."""
