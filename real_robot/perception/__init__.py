"""Perception of a real arm's cameras: calibration, segmentation, grasps."""
