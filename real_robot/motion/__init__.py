"""The motions that a robot executes: reaching, tracking, picking, replay."""
