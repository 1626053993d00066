"""Cameras and rendering: renderer, appearance, point clouds, overlays."""
