"""What cameras give a real arm: calibration, segmentation, grasps."""
