"""Cameras and what they see: renderer, appearance, point clouds, overlays."""
