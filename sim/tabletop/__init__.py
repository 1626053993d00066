"""Tasks in PyBullet on a desk with a drawer, a slider, a switch with a light, and blocks."""
