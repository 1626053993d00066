"""The PyBullet engines of the tasks."""
